#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| belljar_share_disk::fuzz::archive(data));
