//! `Content-Encoding`: the supported compressions, and decompression within a bound.

use std::io::{self, Read};

use axum::http::{HeaderMap, header};
use flate2::bufread::MultiGzDecoder;
use flate2::{Decompress, FlushDecompress, Status};

/// The compression of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    Identity,
    Gzip,
    Deflate,
    Zstd,
}

/// A body that could not be decompressed.
#[derive(Debug)]
pub(crate) enum DecodeError {
    /// More decoded bytes than allowed.
    TooLarge,
    /// The compressed bytes are damaged, cut short, or of another format.
    Corrupt(io::Error),
}

/// The encodings that [`Encoding::of`] knows, for `Accept-Encoding`.
pub(crate) const ACCEPTED: &str = "gzip, deflate, zstd";

/// The largest window of zstd: 8 MiB, which RFC 8878 asks every decoder to support.
const ZSTD_WINDOW_LOG: u32 = 23;

impl Encoding {
    /// Returns the encoding that the headers name; one at most.
    ///
    /// # Errors
    /// The header as sent, when it names another encoding or several.
    pub(crate) fn of(headers: &HeaderMap) -> Result<Self, String> {
        let mut encoding = Self::Identity;
        for header in headers.get_all(header::CONTENT_ENCODING) {
            let text = String::from_utf8_lossy(header.as_bytes());
            for name in text.split(',').map(|name| name.trim().to_ascii_lowercase()) {
                let named = match name.as_str() {
                    "" | "identity" => continue,
                    "gzip" | "x-gzip" => Self::Gzip,
                    "deflate" => Self::Deflate,
                    "zstd" => Self::Zstd,
                    _ => return Err(text.into_owned()),
                };
                if encoding != Self::Identity {
                    return Err(text.into_owned());
                }
                encoding = named;
            }
        }
        Ok(encoding)
    }

    /// Decompresses a body to at most `max_bytes`, and never holds more in memory. Blocks.
    pub(crate) fn decode(self, body: &[u8], max_bytes: usize) -> Result<Vec<u8>, DecodeError> {
        match self {
            Self::Identity => read(body, max_bytes),
            Self::Gzip => read(MultiGzDecoder::new(body), max_bytes),
            Self::Deflate => inflate(body, max_bytes),
            Self::Zstd => {
                let mut decoder = zstd::Decoder::with_buffer(body)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG)?;
                read(decoder, max_bytes)
            }
        }
    }
}

impl From<io::Error> for DecodeError {
    fn from(error: io::Error) -> Self {
        Self::Corrupt(error)
    }
}

fn read(mut decoder: impl Read, max_bytes: usize) -> Result<Vec<u8>, DecodeError> {
    let mut decoded = Vec::new();
    let mut chunk = [0; 16 * 1024];
    loop {
        match decoder.read(&mut chunk)? {
            0 => return Ok(decoded),
            read => append(&mut decoded, &chunk[..read], max_bytes)?,
        }
    }
}

/// Decompresses deflate with the zlib header that the RFC asks for, or raw, as some clients send it. flate2's readers
/// are not used because they accept a stream that was cut short.
fn inflate(body: &[u8], max_bytes: usize) -> Result<Vec<u8>, DecodeError> {
    let zlib = matches!(body, [cmf, flags, ..] if cmf & 0x0f == 8 && u16::from_be_bytes([*cmf, *flags]) % 31 == 0);
    let mut decompress = Decompress::new(zlib);
    let mut decoded = Vec::new();
    let mut chunk = [0; 16 * 1024];
    let mut rest = body;
    loop {
        let (consumed, produced) = (decompress.total_in(), decompress.total_out());
        let status = decompress.decompress(rest, &mut chunk, FlushDecompress::None).map_err(io::Error::other)?;
        let (consumed, produced) = (decompress.total_in() - consumed, (decompress.total_out() - produced) as usize);
        rest = &rest[consumed as usize..];
        append(&mut decoded, &chunk[..produced], max_bytes)?;
        match status {
            Status::StreamEnd if rest.is_empty() => return Ok(decoded),
            Status::StreamEnd => return Err(io::Error::other("more bytes follow the end of the stream").into()),
            Status::Ok | Status::BufError if consumed == 0 && produced == 0 => {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            Status::Ok | Status::BufError => {}
        }
    }
}

/// Appends within `max_bytes`; the growth of `Vec` alone would reserve more.
fn append(decoded: &mut Vec<u8>, chunk: &[u8], max_bytes: usize) -> Result<(), DecodeError> {
    let available = max_bytes - decoded.len();
    if chunk.len() > available {
        return Err(DecodeError::TooLarge);
    }
    if decoded.capacity() - decoded.len() < chunk.len() {
        decoded.reserve_exact(decoded.len().max(chunk.len()).min(available));
    }
    decoded.extend_from_slice(chunk);
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use std::io::Write;

    use axum::http::HeaderValue;
    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};

    use super::*;

    pub(crate) fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    pub(crate) fn zlib(text: &[u8]) -> Vec<u8> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    fn raw_deflate(text: &[u8]) -> Vec<u8> {
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    pub(crate) fn zstd(text: &[u8]) -> Vec<u8> {
        zstd::encode_all(text, 3).unwrap()
    }

    type Compress = fn(&[u8]) -> Vec<u8>;

    const ALL: [(Encoding, Compress); 4] =
        [(Encoding::Gzip, gzip), (Encoding::Deflate, zlib), (Encoding::Deflate, raw_deflate), (Encoding::Zstd, zstd)];

    fn of(values: &[&'static str]) -> Result<Encoding, String> {
        let headers = values.iter().map(|value| (header::CONTENT_ENCODING, HeaderValue::from_static(value)));
        Encoding::of(&headers.collect())
    }

    #[test]
    fn names_are_known_whatever_their_case() {
        assert_eq!(of(&[]), Ok(Encoding::Identity));
        assert_eq!(of(&["identity"]), Ok(Encoding::Identity));
        assert_eq!(of(&["GZip"]), Ok(Encoding::Gzip));
        assert_eq!(of(&["x-gzip"]), Ok(Encoding::Gzip));
        assert_eq!(of(&[" deflate "]), Ok(Encoding::Deflate));
        assert_eq!(of(&["identity, zstd"]), Ok(Encoding::Zstd));
    }

    #[test]
    fn others_and_several_are_refused() {
        assert_eq!(of(&["br"]), Err("br".to_owned()));
        assert_eq!(of(&["gzip, zstd"]), Err("gzip, zstd".to_owned()));
        assert_eq!(of(&["gzip", "gzip"]), Err("gzip".to_owned()));
    }

    #[test]
    fn every_encoding_gives_back_what_was_encoded() {
        for text in [&b""[..], b"{}", &b"abc".repeat(100_000)] {
            for (encoding, compress) in ALL {
                assert_eq!(encoding.decode(&compress(text), text.len()).unwrap(), text, "{encoding:?}");
            }
        }
    }

    #[test]
    fn one_byte_over_the_bound_is_too_large() {
        for (encoding, compress) in ALL {
            let body = compress(&vec![b' '; 100_001]);
            assert!(matches!(encoding.decode(&body, 100_000), Err(DecodeError::TooLarge)), "{encoding:?}");
            assert_eq!(encoding.decode(&body, 100_001).unwrap().len(), 100_001);
        }
    }

    #[test]
    fn no_more_than_the_bound_is_held() {
        for (encoding, compress) in ALL {
            let decoded = encoding.decode(&compress(&vec![b' '; 100_000]), 100_000).unwrap();
            assert!(decoded.capacity() <= 100_000, "{encoding:?}: {}", decoded.capacity());
        }
    }

    #[test]
    fn every_cut_and_every_addition_is_noticed() {
        // Incompressible enough to have several blocks and no long runs.
        let text: Vec<u8> = (0..2000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()).collect();
        for (encoding, compress) in ALL {
            let body = compress(&text);
            for cut in 0..body.len() {
                let decoded = encoding.decode(&body[..cut], 100_000);
                assert!(matches!(decoded, Err(DecodeError::Corrupt(_))), "{encoding:?} cut at {cut}: {decoded:?}");
            }
            let decoded = encoding.decode(&[&body[..], b"more"].concat(), 100_000);
            assert!(matches!(decoded, Err(DecodeError::Corrupt(_))), "{encoding:?}");
        }
    }

    #[test]
    fn concatenated_gzip_members_and_zstd_frames_are_one_body() {
        assert_eq!(Encoding::Gzip.decode(&[gzip(b"a"), gzip(b"b")].concat(), 10).unwrap(), b"ab");
        assert_eq!(Encoding::Zstd.decode(&[zstd(b"a"), zstd(b"b")].concat(), 10).unwrap(), b"ab");
    }

    #[test]
    fn a_zstd_window_above_8_mib_is_refused() {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(24).unwrap();
        encoder.write_all(&vec![b' '; 20 << 20]).unwrap();
        let body = encoder.finish().unwrap();
        assert!(matches!(Encoding::Zstd.decode(&body, 32 << 20), Err(DecodeError::Corrupt(_))));
    }
}
