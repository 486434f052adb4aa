#![no_main]
//! libFuzzer front end of `mimeo_fuzz_cases::share`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| mimeo_fuzz_cases::share(data));
