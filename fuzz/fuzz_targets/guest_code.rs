#![no_main]
//! libFuzzer front end of `mimeo_fuzz_cases::guest_code`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| mimeo_fuzz_cases::guest_code(data));
