//! Named guests: images that Mimeo prepares itself.

use crate::payload::{Boot, Disk};
use crate::status::Failure;
use anyhow::anyhow;
use indicatif::{ProgressBar, ProgressStyle};
use mimeo_image::{DebianOptions, Flavour, Progress, Terminal, debian};
use rustix::{stdio, termios};
use std::time::Duration;

/// The names and what they are.
pub const GUESTS: &[(&str, Flavour)] = &[
    ("debian", Flavour::Cloud),
    ("debian-generic", Flavour::Generic),
    ("debian-stable", Flavour::Stable),
];

/// How a guest shall be.
#[derive(Debug, Default)]
pub struct Wanted<'a> {
    /// Words for its command line.
    pub append: &'a str,
    /// A person may sit at its serial port; otherwise it runs what it reads as a script.
    pub interactive: bool,
    /// The machine's name.
    pub name: Option<&'a str>,
}

/// The machine's name as a host name (RFC 1123): letters, digits and hyphens.
fn host_name(name: &str) -> String {
    let letter = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    name.chars().map(letter).collect()
}

/// Prepares the guest `name`.
pub fn prepare(name: &str, wanted: Wanted<'_>) -> Result<Boot, Failure> {
    let Some(&(_, flavour)) = GUESTS.iter().find(|(n, _)| *n == name) else {
        let names: Vec<&str> = GUESTS.iter().map(|(n, _)| *n).collect();
        return Err(Failure::usage(anyhow!(
            "there is no guest `{name}`: choose one of {}, or give --kernel FILE",
            names.join(", ")
        )));
    };
    let options = DebianOptions {
        flavour,
        terminal: wanted.interactive.then(terminal),
        ..DebianOptions::default()
    };
    let mut shown = Shown::default();
    let image = debian(&options, &mut |p| shown.show(p)).map_err(Failure::usage);
    shown.finish();
    let image = image?;
    let mut cmdline = image.cmdline;
    if let Some(name) = wanted.name {
        cmdline.push_str(&format!(" mimeo.hostname={}", host_name(name)));
    }
    if !wanted.append.is_empty() {
        cmdline.push(' ');
        cmdline.push_str(wanted.append);
    }
    let initrds = vec![
        Disk::Bytes(name.to_owned(), image.initrd),
        Disk::File(image.modules),
    ];
    Ok(Boot {
        kernel: image.kernel,
        initrds,
        cmdline,
    })
}

/// The terminal that the person looks at; a plain one in the background, where somebody may sit
/// down at the console later.
fn terminal() -> Terminal {
    let size = termios::tcgetwinsize(stdio::stdout()).ok();
    Terminal {
        term: std::env::var("TERM").unwrap_or_default(),
        cols: size.map_or(80, |s| s.ws_col),
        rows: size.map_or(24, |s| s.ws_row),
    }
}

/// The progress display on standard error; nothing is shown where that is no terminal.
#[derive(Default)]
struct Shown {
    bar: Option<ProgressBar>,
    what: String,
}

impl Shown {
    fn show(&mut self, progress: Progress<'_>) {
        match progress {
            Progress::Step(text) => {
                self.finish();
                let bar = ProgressBar::new_spinner().with_message(text.to_owned());
                bar.enable_steady_tick(Duration::from_millis(100));
                self.bar = Some(bar);
                self.what.clear();
            }
            Progress::Bytes { what, done, total } => {
                if self.what != what {
                    self.finish();
                    self.bar = Some(download_bar(what, total));
                    self.what = what.to_owned();
                }
                if let Some(bar) = &self.bar {
                    bar.set_length(total.max(done));
                    bar.set_position(done);
                }
            }
            Progress::Done => self.finish(),
        }
    }

    fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

fn download_bar(what: &str, total: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} [{wide_bar}] {bytes}/{total_bytes} {eta}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(total)
        .with_style(style)
        .with_message(what.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_guest_is_told_the_known_ones() {
        let error = prepare("windows", Wanted::default())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("windows") && error.contains("debian"),
            "{error}"
        );
    }
}
