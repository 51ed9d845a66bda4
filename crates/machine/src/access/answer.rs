//! What our shell says to us: markers that carry the state of the line that it is at.
//!
//! ```text
//! <TAG:SEQ:b:SEQ>              line SEQ begins
//! <TAG:SEQ:CODE:CHECK:ASK>     the last line that began is SEQ, it ended with CODE (999: it has not); answers ASK
//! <TAG:0:p:0>                  a password is asked for
//! ```
//!
//! `TAG` is random; it is typed once, as the value of a variable, so that no echo of what we type can look like a marker.
//! `CHECK` is `SEQ * 1000 + CODE`, so that digits of a foreign line that landed in the middle never make another code.

use crate::console::{Marker, Pattern};

/// The code of a line that has begun and not ended.
pub(super) const UNFINISHED: u64 = 999;

/// How many of the tag's bytes in a row show that a marker was there.
const EVIDENCE: usize = 6;

/// One thing our shell said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Begins { seq: u64 },
    State { seq: u64, code: u64, ask: u64 },
    PasswordWanted,
}

/// Random and short, letters and digits only.
pub(super) fn new_tag() -> Result<String, getrandom::Error> {
    const ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
    let mut random = [0; 12];
    getrandom::fill(&mut random)?;
    Ok(random.iter().map(|b| char::from(ALPHABET[usize::from(b % 32)])).collect())
}

/// What to wait for.
pub(super) fn pattern(tag: &str) -> Pattern {
    Pattern::Marker(Marker::new(format!("<{tag}:"), |payload| parse(payload).is_some()))
}

/// Reads a marker's payload; `None` for one that does not check.
pub(super) fn parse(payload: &[u8]) -> Option<Answer> {
    let text = std::str::from_utf8(payload).ok()?;
    let mut fields = text.split(':');
    let number = |f: Option<&str>| {
        f.filter(|t| !t.is_empty() && t.len() < 16 && t.bytes().all(|b| b.is_ascii_digit()))
            .and_then(|t| t.parse::<u64>().ok())
    };
    let seq = number(fields.next())?;
    let what = fields.next()?;
    let check = number(fields.next())?;
    let answer = match what {
        "b" if check == seq => Answer::Begins { seq },
        "p" if check == seq => Answer::PasswordWanted,
        code => {
            let code = number(Some(code)).filter(|c| *c <= UNFINISHED)?;
            let ask = number(fields.next())?;
            if check != seq.checked_mul(1000)?.checked_add(code)? {
                return None;
            }
            Answer::State { seq, code, ask }
        }
    };
    fields.next().is_none().then_some(answer)
}

/// The line that asks for the state. `_b` holds the tag, `_s` the line's number, `_c` its code.
pub(super) fn ask(number: u64) -> String {
    format!(r#"echo "<$_b:$_s:$_c:$((_s*1000+_c)):{number}>""#)
}

/// Whether a marker seems to have come in pieces too small to be recognised.
pub(super) fn fragments(tag: &str, text: &[u8]) -> bool {
    // The last bytes only: a marker that is older was asked for again already.
    let recent = &text[text.len().saturating_sub(64 * 1024)..];
    tag.as_bytes().windows(EVIDENCE).any(|part| memchr::memmem::find(recent, part).is_some())
}

/// `'text'` for a POSIX shell.
pub(crate) fn quote(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + 2);
    out.push(b'\'');
    for &b in text {
        if b == b'\'' {
            out.extend_from_slice(b"'\\''");
        } else {
            out.push(b);
        }
    }
    out.push(b'\'');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn answers_are_read_exactly() {
        assert_eq!(parse(b"17:b:17"), Some(Answer::Begins { seq: 17 }));
        assert_eq!(parse(b"17:7:17007:3"), Some(Answer::State { seq: 17, code: 7, ask: 3 }));
        assert_eq!(parse(b"17:999:17999:3"), Some(Answer::State { seq: 17, code: 999, ask: 3 }));
        assert_eq!(parse(b"0:p:0"), Some(Answer::PasswordWanted));
        for wrong in
            ["17:7:17008:3", "17:7:17007", "17:b:18", "17::17000:3", "17:7:17007:3:", "17:-1:16999:3", "", "::::"]
        {
            assert_eq!(parse(wrong.as_bytes()), None, "{wrong}");
        }
    }

    #[test]
    fn what_is_typed_is_no_answer() {
        let tag = new_tag().expect("random");
        assert_eq!(tag.len(), 12);
        assert!(!ask(1).contains(&tag));
    }

    proptest! {
        #[test]
        fn one_wrong_digit_is_noticed(seq in 1u64..100_000, code in 0u64..256, ask in 0u64..1000, at in 0usize..30, digit in 0u8..10) {
            let payload = format!("{seq}:{code}:{}:{ask}", seq * 1000 + code);
            let last = payload.rfind(':').expect("colon");
            prop_assert_eq!(parse(payload.as_bytes()), Some(Answer::State { seq, code, ask }));
            let mut wrong = payload.clone().into_bytes();
            wrong.insert(at % last, b'0' + digit);
            if let Some(Answer::State { seq: s, code: c, .. }) = parse(&wrong) {
                prop_assert!((s, c) == (seq, code), "{}", wrong.escape_ascii());
            }
        }

        #[test]
        fn any_payload_is_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            parse(&bytes);
        }
    }
}
