#![no_main]
//! libFuzzer front end of `mimeo_fuzz_cases::virtio`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| mimeo_fuzz_cases::virtio(data));
