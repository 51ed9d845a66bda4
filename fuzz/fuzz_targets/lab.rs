#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    belljar_lab::fuzz::conversation(data);
    // Behind the handshake, so that requests are tried as well.
    let hello = b"\0\0\0\x03IHAVEOPT\0\0\0\x07\0\0\0\x06\0\0\0\0\0\0";
    let asked = [hello, data].concat();
    belljar_lab::fuzz::conversation(&asked);
    let _ = belljar_lab::fuzz::served(&asked, 999, 0);
});
