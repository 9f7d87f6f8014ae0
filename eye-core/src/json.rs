//! A JSON scanner: one forward pass that checks the text and copies its tokens without the white space between them.
//!
//! [`Scanner`] is iterative, so deep nesting cannot overflow the stack. It reports two kinds of error. A [`SyntaxError`]
//! means that the text is not JSON, and ends the scan. A [`ValueProblem`] means that a value is JSON which some database
//! could not store; the scan continues behind the value.

mod errors;
mod strings;

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use errors::Found;
pub use errors::{SyntaxError, ValueProblem};
use strings::{plain_length, unescape};

/// Text to be scanned. A byte order mark at its start is skipped.
pub struct JsonText<'a> {
    text: Cow<'a, str>,
    /// The original bytes where they are not UTF-8; as long as `text`.
    not_utf8: Option<&'a [u8]>,
}

impl<'a> JsonText<'a> {
    /// Prepares bytes for the scan.
    pub fn new(bytes: &'a [u8]) -> Self {
        let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes);
        match std::str::from_utf8(bytes) {
            Ok(text) => Self { text: Cow::Borrowed(text), not_utf8: None },
            Err(_) => Self { text: Cow::Owned(mask_invalid_utf8(bytes)), not_utf8: Some(bytes) },
        }
    }

    /// Returns the text, with U+007F in place of each byte that is not UTF-8.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// Replaces each byte that is not UTF-8 by U+007F, so that positions stay. Outside of strings that is a syntax error as
/// well. Within strings [`Scanner::value`] looks at the original bytes.
fn mask_invalid_utf8(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| '\u{7f}'));
    }
    text
}

/// A scan over a text, at one position.
pub struct Scanner<'a> {
    text: &'a str,
    not_utf8: Option<&'a [u8]>,
    position: usize,
    /// The start of the line `line`, from which lines and columns are counted.
    line_start: usize,
    line: usize,
    /// The start of the tokens that are not copied yet.
    copy_from: usize,
    problem: Option<ValueProblem>,
    /// The closing byte of each open container, the outermost first.
    closers: Vec<u8>,
    copied: String,
}

/// A value that [`Scanner::value`] has read.
#[derive(Debug)]
pub struct ScannedValue {
    /// Its kind.
    pub kind: JsonKind,
    /// The depth of nested containers: 0 for a scalar, 1 for `{}`.
    pub levels: usize,
    /// The first reason for which it cannot be stored.
    pub problem: Option<ValueProblem>,
    /// The range of its tokens in [`Scanner::copied`].
    pub tokens: Range<usize>,
    /// Its range in the text.
    span: Range<usize>,
    /// True for a string with escapes.
    escaped: bool,
}

/// The kind of a JSON value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names of JSON")]
pub enum JsonKind {
    Null,
    Boolean,
    Number,
    String,
    Array,
    Object,
}

impl fmt::Display for JsonKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Null => "null",
            Self::Boolean => "a boolean",
            Self::Number => "a number",
            Self::String => "a string",
            Self::Array => "an array",
            Self::Object => "an object",
        })
    }
}

/// The initial capacity of the copies: enough for a typical event.
const USUAL_COPIED_BYTES: usize = 1024;

impl<'a> Scanner<'a> {
    /// Creates a scan from the start of `text`.
    pub fn new(text: &'a JsonText<'a>) -> Self {
        Self {
            text: &text.text,
            not_utf8: text.not_utf8,
            position: 0,
            line_start: 0,
            line: 1,
            copy_from: 0,
            problem: None,
            closers: Vec::new(),
            copied: String::with_capacity(USUAL_COPIED_BYTES),
        }
    }

    /// Moves to a line of `text` and ends the scan at its end. `number` is the line's, from 1.
    pub fn enter_line(&mut self, text: &'a JsonText<'a>, line: Range<usize>, number: usize) {
        self.text = &text.text[..line.end];
        self.position = line.start;
        self.line_start = line.start;
        self.line = number;
    }

    /// Returns the position in the text, in bytes.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Returns the next byte without taking it.
    pub fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.position).copied()
    }

    /// Takes the next byte if it is this one.
    pub fn eat(&mut self, byte: u8) -> bool {
        let is_next = self.peek() == Some(byte);
        self.position += usize::from(is_next);
        is_next
    }

    /// Moves to the next token, or to the end.
    pub fn skip_white_space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.position += 1;
        }
    }

    /// Creates the error that `expected` was not found here.
    pub fn unexpected(&self, expected: &'static str) -> SyntaxError {
        let before = &self.text[self.line_start..self.position];
        let last_line = before.rsplit('\n').next().unwrap_or(before);
        let line = self.line + before.bytes().filter(|&byte| byte == b'\n').count();
        let found = match self.text[self.position..].chars().next() {
            Some('\u{7f}') if self.not_utf8.is_some_and(|bytes| bytes[self.position] != 0x7f) => Found::InvalidUtf8,
            Some(character) => Found::Character(character),
            None => Found::End,
        };
        SyntaxError { line, column: last_line.chars().count() + 1, expected, found }
    }

    /// Returns the copies made since [`clear`](Self::clear).
    pub fn copied(&self) -> &str {
        &self.copied
    }

    /// Removes the copies.
    pub fn clear(&mut self) {
        self.copied.clear();
    }

    /// Copies parts of the copies once more, in the given order.
    pub fn join(&mut self, parts: [Range<usize>; 4]) -> &str {
        let start = self.copied.len();
        for part in parts {
            self.copied.extend_from_within(part);
        }
        &self.copied[start..]
    }

    /// Reads a value at this position and copies its tokens.
    ///
    /// # Errors
    /// [`SyntaxError`] when there is no JSON value.
    pub fn value(&mut self) -> Result<ScannedValue, SyntaxError> {
        let (start, tokens_start) = (self.position, self.copied.len());
        self.copy_from = start;
        self.problem = None;
        self.closers.clear();
        let (mut levels, mut escaped) = (0, false);
        loop {
            match self.peek() {
                Some(opener @ (b'{' | b'[')) => {
                    self.position += 1;
                    let closer = if opener == b'{' { b'}' } else { b']' };
                    self.closers.push(closer);
                    levels = levels.max(self.closers.len());
                    self.drop_white_space();
                    if self.peek() != Some(closer) {
                        self.key_in(closer)?;
                        continue;
                    }
                }
                Some(b'"') => escaped = self.string()?,
                Some(b'-' | b'0'..=b'9') => self.number()?,
                Some(b't') => self.literal("true")?,
                Some(b'f') => self.literal("false")?,
                Some(b'n') => self.literal("null")?,
                _ => return Err(self.unexpected("a JSON value")),
            }
            if self.close_containers()? {
                break;
            }
        }
        self.copy_tokens();
        let span = start..self.position;
        let kind = match self.text.as_bytes()[start] {
            b'{' => JsonKind::Object,
            b'[' => JsonKind::Array,
            b'"' => JsonKind::String,
            b't' | b'f' => JsonKind::Boolean,
            b'n' => JsonKind::Null,
            _ => JsonKind::Number,
        };
        let problem = self.take_problem(&span);
        Ok(ScannedValue { kind, levels, problem, tokens: tokens_start..self.copied.len(), span, escaped })
    }

    /// Reads an object's key and the colon behind it, and moves to the value. Returns the key without escapes, and the
    /// first reason for which it cannot be stored.
    ///
    /// # Errors
    /// [`SyntaxError`] when there is no key.
    pub fn key(&mut self) -> Result<(Cow<'a, str>, Option<ValueProblem>), SyntaxError> {
        if self.peek() != Some(b'"') {
            return Err(self.unexpected("a key in double quotes"));
        }
        let start = self.position;
        self.problem = None;
        let escaped = self.string()?;
        let span = start..self.position;
        let problem = self.take_problem(&span);
        let content = &self.text[span.start + 1..span.end - 1];
        let key = if escaped {
            let mut key = String::new();
            unescape(content, &mut key);
            Cow::Owned(key)
        } else {
            Cow::Borrowed(content)
        };
        self.skip_white_space();
        if !self.eat(b':') {
            return Err(self.unexpected("`:`"));
        }
        self.skip_white_space();
        Ok((key, problem))
    }

    /// Returns the range in [`copied`](Self::copied) of a string without its escapes, or of a number's text.
    pub fn content(&mut self, value: &ScannedValue) -> Range<usize> {
        if value.kind != JsonKind::String {
            return value.tokens.clone();
        }
        if !value.escaped {
            return value.tokens.start + 1..value.tokens.end - 1;
        }
        let start = self.copied.len();
        unescape(&self.text[value.span.start + 1..value.span.end - 1], &mut self.copied);
        start..self.copied.len()
    }

    /// Closes the containers that end with a complete value. Returns true when none is open any more; otherwise moves to
    /// the next value.
    fn close_containers(&mut self) -> Result<bool, SyntaxError> {
        while let Some(&closer) = self.closers.last() {
            self.drop_white_space();
            if self.eat(closer) {
                self.closers.pop();
            } else if self.eat(b',') {
                self.drop_white_space();
                self.key_in(closer)?;
                return Ok(false);
            } else {
                return Err(self.unexpected(if closer == b'}' { "`,` or `}`" } else { "`,` or `]`" }));
            }
        }
        Ok(true)
    }

    /// In an object, reads the key in front of its next value.
    fn key_in(&mut self, closer: u8) -> Result<(), SyntaxError> {
        if closer != b'}' {
            return Ok(());
        }
        if self.peek() != Some(b'"') {
            return Err(self.unexpected("a key in double quotes"));
        }
        self.string()?;
        self.drop_white_space();
        if !self.eat(b':') {
            return Err(self.unexpected("`:`"));
        }
        self.drop_white_space();
        Ok(())
    }

    /// Skips white space within a value, after copying the tokens in front of it in one go.
    fn drop_white_space(&mut self) {
        if let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.copy_tokens();
            self.skip_white_space();
            self.copy_from = self.position;
        }
    }

    fn copy_tokens(&mut self) {
        self.copied.push_str(&self.text[self.copy_from..self.position]);
    }

    /// Reads a string. Returns true when it has escapes.
    fn string(&mut self) -> Result<bool, SyntaxError> {
        self.position += 1;
        let mut escaped = false;
        loop {
            self.position += plain_length(&self.text.as_bytes()[self.position..]);
            match self.peek() {
                Some(b'"') => {
                    self.position += 1;
                    return Ok(escaped);
                }
                Some(b'\\') => {
                    self.escape()?;
                    escaped = true;
                }
                Some(_) => return Err(self.unexpected("an escape such as \\n instead of a control character")),
                None => return Err(self.unexpected("the end of the string")),
            }
        }
    }

    fn escape(&mut self) -> Result<(), SyntaxError> {
        self.position += 1;
        match self.peek() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.position += 1,
            Some(b'u') => {
                self.position += 1;
                match self.hex_digits()? {
                    0 => self.report(ValueProblem::NullCharacter),
                    0xD800..=0xDBFF if self.eat_low_surrogate() => {}
                    0xD800..=0xDFFF => self.report(ValueProblem::LoneSurrogate),
                    _ => {}
                }
            }
            _ => return Err(self.unexpected("one of `\"\\/bfnrtu` behind a backslash")),
        }
        Ok(())
    }

    fn hex_digits(&mut self) -> Result<u32, SyntaxError> {
        let mut code = 0;
        for _ in 0..4 {
            let digit = self.peek().and_then(|byte| char::from(byte).to_digit(16));
            code = code * 16 + digit.ok_or_else(|| self.unexpected("four hexadecimal digits behind `\\u`"))?;
            self.position += 1;
        }
        Ok(code)
    }

    /// Takes `\uDC00` to `\uDFFF` if that is next.
    fn eat_low_surrogate(&mut self) -> bool {
        let rest = &self.text.as_bytes()[self.position..];
        let is_low = matches!(
            rest,
            [b'\\', b'u', b'd' | b'D', b'c'..=b'f' | b'C'..=b'F', a, b, ..]
                if a.is_ascii_hexdigit() && b.is_ascii_hexdigit()
        );
        self.position += if is_low { 6 } else { 0 };
        is_low
    }

    fn number(&mut self) -> Result<(), SyntaxError> {
        let start = self.position;
        self.eat(b'-');
        if !self.eat(b'0') {
            self.digits()?;
        }
        if self.eat(b'.') {
            self.digits()?;
        }
        let has_exponent = self.eat(b'e') || self.eat(b'E');
        if has_exponent {
            if !self.eat(b'+') {
                self.eat(b'-');
            }
            self.digits()?;
        }
        // A double holds up to 308 digits before the point.
        if has_exponent || self.position - start > 308 {
            let number = self.text[start..self.position].parse::<f64>();
            if !number.is_ok_and(f64::is_finite) {
                self.report(ValueProblem::NumberTooLarge);
            }
        }
        self.word_end()
    }

    fn digits(&mut self) -> Result<(), SyntaxError> {
        let start = self.position;
        while let Some(b'0'..=b'9') = self.peek() {
            self.position += 1;
        }
        if self.position == start { Err(self.unexpected("a digit")) } else { Ok(()) }
    }

    fn literal(&mut self, literal: &'static str) -> Result<(), SyntaxError> {
        if !self.text.as_bytes()[self.position..].starts_with(literal.as_bytes()) {
            return Err(self.unexpected("a JSON value"));
        }
        self.position += literal.len();
        self.word_end()
    }

    /// Checks that a number or literal ends here: `01` and `truefalse` are not two values.
    fn word_end(&self) -> Result<(), SyntaxError> {
        match self.peek() {
            Some(b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'.' | b'+' | b'-' | b'_') => {
                Err(self.unexpected("the end of the value"))
            }
            _ => Ok(()),
        }
    }

    fn report(&mut self, problem: ValueProblem) {
        self.problem.get_or_insert(problem);
    }

    fn take_problem(&mut self, span: &Range<usize>) -> Option<ValueProblem> {
        let not_utf8 = self.not_utf8.is_some_and(|bytes| std::str::from_utf8(&bytes[span.clone()]).is_err());
        self.problem.take().or(not_utf8.then_some(ValueProblem::InvalidUtf8))
    }
}

#[cfg(test)]
mod tests;
