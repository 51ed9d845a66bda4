#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| belljar_oci::fuzz::layers(data));
