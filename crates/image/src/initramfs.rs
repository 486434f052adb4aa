//! The quickstart image's initramfs: busybox, the agent, an init of our own, and a few
//! files of /etc.

use crate::cpio::Cpio;
use crate::undo_ignore;
use mimeo_agent_binary::AGENT;

/// The first process's script.
const INIT: &[u8] = include_bytes!("init.sh");

/// What it becomes.
const SESSION: &[u8] = include_bytes!("session.sh");

const PROFILE: &str = "\
[ -n \"$MIMEO_GREETED\" ] && return
export MIMEO_GREETED=1
echo \"Linux $(uname -r) with busybox, in Mimeo. poweroff, exit or Ctrl-D ends the machine; resize after the window has changed.\"
";

/// What udhcpc calls with what it has learned.
const UDHCPC: &[u8] = include_bytes!("udhcpc.sh");

/// For a window that has changed its size.
const RESIZE: &[u8] = include_bytes!("resize.sh");

/// Makes the archive around a static busybox.
pub(crate) fn initramfs(busybox: &[u8]) -> Vec<u8> {
    let mut c = Cpio::new();
    for (dir, permissions) in [
        ("bin", 0o755),
        ("sbin", 0o755),
        ("usr/bin", 0o755),
        ("usr/sbin", 0o755),
        ("dev", 0o755),
        ("etc", 0o755),
        ("proc", 0o555),
        ("sys", 0o555),
        ("run", 0o755),
        ("mnt", 0o755),
        ("var/log", 0o755),
        ("root", 0o700),
        ("tmp", 0o1777),
    ] {
        c.directory(dir, permissions);
    }
    c.file("bin/busybox", 0o755, busybox);
    // What the session uses, wherever it runs.
    if !AGENT.is_empty() {
        c.file("mimeo/mimeo-agent", 0o755, AGENT);
    }
    c.file("mimeo/undo-ignore", 0o755, &undo_ignore::program());
    c.file("mimeo/session.sh", 0o755, SESSION);
    c.file("init", 0o755, INIT);
    // The kernel opens /dev/console for init before devtmpfs is mounted.
    c.character_device("dev/console", 0o600, 5, 1);
    c.file("etc/profile", 0o644, PROFILE.as_bytes());
    // What busybox's acpid runs when the power button is pressed.
    let button: &[u8] = b"#!/bin/sh\nexec kill -USR2 1\n";
    c.file("mimeo/acpi/PWRF/00000080", 0o755, button);
    c.file("mimeo/udhcpc.sh", 0o755, UDHCPC);
    c.file("usr/bin/resize", 0o755, RESIZE);
    c.file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n");
    c.file("etc/group", 0o644, b"root:x:0:\ntty:x:5:\n");
    c.file("etc/hosts", 0o644, b"127.0.0.1 localhost\n::1 localhost\n");
    c.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn has_what_the_kernel_and_init_need() {
        let archive = initramfs(b"BUSYBOX");
        let text = String::from_utf8_lossy(&archive);
        for name in [
            "init\0",
            "bin/busybox\0",
            "dev/console\0",
            "usr/sbin\0",
            "etc/passwd\0",
        ] {
            assert!(text.contains(name), "{name}");
        }
    }

    #[test]
    fn the_scripts_are_shell() {
        for path in [
            "/src/init.sh",
            "/src/session.sh",
            "/src/resize.sh",
            "/src/udhcpc.sh",
            "/src/install.sh",
            "/src/configure.sh",
        ] {
            let path = format!("{}{path}", env!("CARGO_MANIFEST_DIR"));
            match Command::new("sh").args(["-n", &path]).output() {
                Ok(o) => assert!(o.status.success(), "{}", String::from_utf8_lossy(&o.stderr)),
                Err(_) => println!("skipped: no sh"),
            }
        }
    }
}
