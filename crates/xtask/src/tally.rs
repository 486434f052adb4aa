//! Sums up a `cargo test` log into the one line that CI ends with.

use std::fs;

/// (passed, failed, ignored) over all `test result:` lines.
fn sum(log: &str) -> (u64, u64, u64) {
    let mut total = (0, 0, 0);
    for line in log.lines().filter(|l| l.starts_with("test result:")) {
        let count = |what: &str| -> u64 {
            let words: Vec<&str> = line
                .split([' ', ';', '.'])
                .filter(|w| !w.is_empty())
                .collect();
            words
                .windows(2)
                .find(|w| w[1] == what)
                .and_then(|w| w[0].parse().ok())
                .unwrap_or(0)
        };
        total.0 += count("passed");
        total.1 += count("failed");
        total.2 += count("ignored");
    }
    total
}

/// The summary of the log `file`. `steps` is the number of CI steps that failed: when no test
/// explains them, they are the failures.
pub fn run(file: &str, steps: &str) -> Result<String, String> {
    let log = fs::read(file).map_err(|e| format!("cannot read {file}: {e}"))?;
    let steps: u64 = steps
        .parse()
        .map_err(|_| format!("`{steps}` is not a number of steps"))?;
    let (passed, failed, ignored) = sum(&String::from_utf8_lossy(&log));
    let failed = failed.max(steps);
    Ok(format!(
        "{passed} passed, {failed} failed, {ignored} skipped"
    ))
}

#[cfg(test)]
mod tests {
    use super::sum;

    #[test]
    fn lines_are_summed() {
        let log = "running 3 tests\n\
            test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s\n\
            noise\n\
            test result: FAILED. 10 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out\n";
        assert_eq!(sum(log), (13, 2, 1));
    }
}
