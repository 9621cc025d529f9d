//! Keys as S3 events carry them: form-encoded (`+` is a space, `%XX` a byte).

/// The key of an event's object; `None` when the encoding or the UTF-8 in it is broken.
pub fn decode_key(encoded: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(encoded.len());
    let mut rest = encoded.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
                digit(rest.next()?)? * 16 + digit(rest.next()?)?
            }
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_with_spaces_plus_unicode_and_dots_comes_back() {
        assert_eq!(decode_key("a+b%2Bc/%C3%A4..%2F..%2Fx.mp4").unwrap(), "a b+c/ä../../x.mp4");
        for broken in ["%", "%4", "%zz", "%ff"] {
            assert_eq!(decode_key(broken), None, "{broken}");
        }
    }
}
