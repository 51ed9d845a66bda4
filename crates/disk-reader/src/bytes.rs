//! Numbers and texts at places of a byte slice; none where the slice ends before them.

macro_rules! at {
    ($name:ident, $ty:ty, $from:ident) => {
        pub(crate) fn $name(bytes: &[u8], offset: usize) -> Option<$ty> {
            let end = offset.checked_add(size_of::<$ty>())?;
            Some(<$ty>::$from(bytes.get(offset..end)?.try_into().ok()?))
        }
    };
}
at!(le16, u16, from_le_bytes);
at!(le32, u32, from_le_bytes);
at!(le64, u64, from_le_bytes);
at!(be16, u16, from_be_bytes);

/// Text in a field of `length` bytes that is padded with NUL or spaces.
pub(crate) fn text(bytes: &[u8], offset: usize, length: usize) -> Option<String> {
    let field = bytes.get(offset..offset.checked_add(length)?)?;
    let end = field.iter().position(|&b| b == 0).unwrap_or(length);
    Some(String::from_utf8_lossy(&field[..end]).trim().to_owned())
}

/// A UUID whose bytes stand in the order in which it is written.
pub(crate) fn uuid(bytes: &[u8], offset: usize) -> Option<String> {
    let b: [u8; 16] = bytes.get(offset..offset.checked_add(16)?)?.try_into().ok()?;
    let hex = |range: std::ops::Range<usize>| b[range].iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    Some(format!("{}-{}-{}-{}-{}", hex(0..4), hex(4..6), hex(6..8), hex(8..10), hex(10..16)))
}

/// A GUID as EFI stores it: its first three numbers little-endian.
pub(crate) fn guid(bytes: &[u8], offset: usize) -> Option<String> {
    let mut b: [u8; 16] = bytes.get(offset..offset.checked_add(16)?)?.try_into().ok()?;
    b[0..4].reverse();
    b[4..6].reverse();
    b[6..8].reverse();
    uuid(&b, 0)
}
