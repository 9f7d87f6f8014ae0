//! The parts of JSON strings: plain text and escapes.

/// Returns the number of bytes at the start that are neither `"` nor `\` nor control characters. Reads 8 bytes at a
/// time, because most of an event is read here.
pub(super) fn plain_length(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::MAX / 0xFF;
    const HIGHS: u64 = ONES * 0x80;
    // The highest bit of each byte that is below `limit` (at most 0x80). Above the first such byte, there may be
    // false ones: only the first is looked at.
    let below = |word: u64, limit: u64| word.wrapping_sub(ONES * limit) & !word & HIGHS;
    let mut length = 0;
    while let Some(chunk) = bytes[length..].first_chunk::<8>() {
        let word = u64::from_le_bytes(*chunk);
        let quote = below(word ^ (ONES * u64::from(b'"')), 1);
        let backslash = below(word ^ (ONES * u64::from(b'\\')), 1);
        let special = quote | backslash | below(word, 0x20);
        if special != 0 {
            return length + special.trailing_zeros() as usize / 8;
        }
        length += 8;
    }
    let is_special = |byte: &u8| matches!(byte, b'"' | b'\\' | 0..0x20);
    length + bytes[length..].iter().position(is_special).unwrap_or(bytes.len() - length)
}

/// Appends the content of a scanned string, with its escapes resolved. Lone surrogates, which the scan has reported,
/// become U+FFFD.
pub(super) fn unescape(mut content: &str, into: &mut String) {
    while let Some((plain, escape)) = content.split_once('\\') {
        into.push_str(plain);
        let (character, length) = match escape.as_bytes()[0] {
            b'b' => ('\u{8}', 1),
            b'f' => ('\u{c}', 1),
            b'n' => ('\n', 1),
            b'r' => ('\r', 1),
            b't' => ('\t', 1),
            b'u' => unescape_unicode(escape),
            itself => (char::from(itself), 1),
        };
        into.push(character);
        content = &escape[length..];
    }
    into.push_str(content);
}

/// Returns the character of `u263a` or `ud83d\ude00`, and the length of the escape.
fn unescape_unicode(escape: &str) -> (char, usize) {
    let unit = |start| escape.get(start..start + 4).and_then(|digits| u16::from_str_radix(digits, 16).ok());
    let high = unit(1).unwrap_or_default();
    let low = if escape[5..].starts_with("\\u") { unit(7) } else { None };
    let first = |units: &[u16]| char::decode_utf16(units.iter().copied()).next().and_then(Result::ok);
    match low.and_then(|low| first(&[high, low])) {
        Some(character) => (character, if character > '\u{ffff}' { 11 } else { 5 }),
        None => (first(&[high]).unwrap_or(char::REPLACEMENT_CHARACTER), 5),
    }
}
