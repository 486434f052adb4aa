//! Disks, shared folders, entropy, console and balloon, driven by the stock drivers of Debian's
//! kernels. File systems are made and checked by the host's e2fsprogs.

use crate::debian::{available, boot, status_field};
use crate::support::{Guest, PATIENCE};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// Hash of a folder's files, names included, for a shell in the folder.
const HASH: &str = "find . -type f | sort | while read f; do echo $f; cat $f; done | md5sum";

/// A folder that goes away with the test.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("mimeo-{}-{name}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        Self(dir)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    /// A tree of some hundred files of all lengths.
    fn tree(&self) -> PathBuf {
        let tree = self.0.join("tree");
        let mut seed = 12345u64;
        for dir in 0..8 {
            let dir = tree.join(format!("d{dir}/deeper"));
            fs::create_dir_all(&dir).unwrap();
            for file in 0..25 {
                let bytes: Vec<u8> = (0..file * file * 37)
                    .map(|_| {
                        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1);
                        (seed >> 33) as u8
                    })
                    .collect();
                fs::write(dir.join(format!("f{file}")), bytes).unwrap();
            }
        }
        std::os::unix::fs::symlink("d0/deeper/f3", tree.join("link")).unwrap();
        tree
    }

    /// An ext4 file system of 64 MB with `tree` in it; as qcow2 if that is wanted.
    fn disk(&self, tree: &Path, qcow2: bool) -> String {
        let raw = self.path("disk.img");
        fs::File::create(&raw).unwrap().set_len(64 << 20).unwrap();
        let tree = tree.parent().unwrap().join("tree");
        let dir = tree.display().to_string();
        run("mke2fs", &["-q", "-t", "ext4", "-d", &dir, &raw]);
        if !qcow2 {
            return raw;
        }
        let image = self.path("disk.qcow2");
        mimeo(&["disk", "convert", &raw, &image]);
        fs::remove_file(&raw).unwrap();
        image
    }

    /// The image as a raw file.
    fn raw(&self, image: &str) -> String {
        if !image.ends_with(".qcow2") {
            return image.to_owned();
        }
        let raw = self.path("whole.img");
        mimeo(&["disk", "convert", image, &raw]);
        raw
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs a program of the host's, which must succeed.
fn run(program: &str, args: &[&str]) -> Output {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
    let out = Command::new(program).args(args).env("PATH", path).output();
    let out = out.unwrap_or_else(|e| panic!("{program}: {e}"));
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(
        out.status.success(),
        "{program} {args:?}: {} {said}",
        out.status
    );
    out
}

fn mimeo(args: &[&str]) {
    run(env!("CARGO_BIN_EXE_mimeo"), args);
}

/// The host's tools and the guest are there; says which are not.
fn ready(guest: &'static str) -> bool {
    let tools = ["mke2fs", "e2fsck", "debugfs"];
    let missing = tools.iter().find(|t| {
        let at = |dir: &str| Path::new(dir).join(t).exists();
        !["/usr/sbin", "/sbin", "/usr/bin"].into_iter().any(at)
    });
    if let Some(tool) = missing {
        println!("skipped: {tool} is not installed");
    }
    missing.is_none() && available(guest)
}

fn hash_on_host(dir: &Path) -> String {
    let out = Command::new("sh")
        .args(["-c", HASH])
        .current_dir(dir)
        .output();
    String::from_utf8(out.unwrap().stdout)
        .unwrap()
        .trim()
        .to_owned()
}

/// A disk is read, written and flushed; its file system is whole afterwards.
fn disk(engine: &str, transport: &str, qcow2: bool) {
    if !ready("busybox") {
        return;
    }
    let place = Place::new(&format!("disk-{engine}-{transport}"));
    let tree = place.tree();
    let image = place.disk(&tree, qcow2);
    let args = [
        "busybox",
        "--engine",
        engine,
        "--transport",
        transport,
        "--cpus",
        "2",
        "--disk",
        &format!("{image},serial=first"),
    ];
    let mut g = boot(&args);
    assert_eq!(g.shell("cat /sys/block/vda/serial").trim(), "first");
    assert_eq!(g.shell("ls /sys/block/vda/mq | wc -l").trim(), "2");
    assert_eq!(g.shell("mount -t ext4 -o discard /dev/vda /mnt").trim(), "");
    let hash = hash_on_host(&tree);
    let in_guest = |g: &mut Guest, dir: &str| g.shell(&format!("cd {dir} && {HASH}; cd /"));
    assert_eq!(in_guest(&mut g, "/mnt").trim(), hash);
    assert_eq!(
        g.shell("mkdir /tmp/t && cp -a /mnt/* /tmp/t && cp -a /tmp/t /mnt/copy")
            .trim(),
        ""
    );
    g.shell("rm -r /mnt/d0 /mnt/d1 && sync && umount /mnt && mount -t ext4 /dev/vda /mnt");
    assert_eq!(in_guest(&mut g, "/mnt/copy").trim(), hash);
    g.shell("umount /mnt");
    let log = g.shell("dmesg");
    assert!(
        !log.contains("I/O error") && !log.contains("EXT4-fs error"),
        "{log}"
    );
    g.send("poweroff -f\n");
    assert_eq!(g.wait().code(), Some(0), "{}", g.errors());
    let raw = place.raw(&image);
    run("e2fsck", &["-f", "-n", &raw]);
}

#[test]
fn bt_raw_disk_on_pci() {
    disk("bt", "pci", false);
}

#[test]
fn bt_qcow2_disk_over_mmio() {
    disk("bt", "mmio", true);
}

#[test]
fn interp_qcow2_disk_on_pci() {
    disk("interp", "pci", true);
}

/// The monitor is killed while the guest writes: what was synced is there, and the journal makes the
/// file system whole.
fn killed(transport: &str, qcow2: bool) {
    if !ready("busybox") {
        return;
    }
    let place = Place::new(&format!("kill-{transport}"));
    let tree = place.tree();
    let image = place.disk(&tree, qcow2);
    let mut g = boot(&[
        "busybox",
        "--engine",
        "bt",
        "--transport",
        transport,
        "--disk",
        &image,
    ]);
    g.shell("mount -t ext4 /dev/vda /mnt; echo precious > /mnt/marker; sync");
    g.send("i=0; while :; do cp -r /mnt/d0 /mnt/n$i; i=$((i+1)); [ $i = 5 ] && echo bu''sy; rm -rf /mnt/n$((i-3)); done &\n");
    g.expect("busy");
    g.kill();
    let raw = place.raw(&image);
    // 1: errors were corrected, which the journal's replay counts as.
    let fixed = Command::new("e2fsck")
        .args(["-f", "-p", &raw])
        .output()
        .unwrap();
    assert!(matches!(fixed.status.code(), Some(0 | 1)), "{fixed:?}");
    run("e2fsck", &["-f", "-n", &raw]);
    let marker = run("debugfs", &["-R", "cat /marker", &raw]).stdout;
    assert_eq!(marker, b"precious\n");
}

#[test]
fn a_killed_monitor_leaves_a_raw_disk_whole() {
    killed("pci", false);
}

#[test]
fn a_killed_monitor_leaves_a_qcow2_disk_whole() {
    killed("mmio", true);
}

#[test]
fn read_only_and_throw_away_disks() {
    if !ready("busybox") {
        return;
    }
    let place = Place::new("ro");
    let tree = place.tree();
    let image = place.disk(&tree, false);
    let before = fs::read(&image).unwrap();
    let clone = place.path("clone.qcow2");
    mimeo(&["disk", "create", &clone, "--backing", "disk.img"]);
    let (ro, snapshot) = (format!("{image},ro"), format!("{clone},snapshot"));
    let mut g = boot(&[
        "busybox", "--engine", "bt", "--disk", &ro, "--disk", &snapshot,
    ]);
    assert_eq!(
        g.shell("cat /sys/block/vda/ro /sys/block/vdb/ro")
            .split_whitespace()
            .collect::<Vec<_>>(),
        ["1", "0"]
    );
    assert!(
        g.shell("dd if=/dev/zero of=/dev/vda count=1 2>&1")
            .contains("not permitted")
    );
    g.shell("mount -t ext4 /dev/vdb /mnt; rm -r /mnt/d0; sync; umount /mnt; mount -t ext4 /dev/vdb /mnt");
    assert_eq!(g.shell("ls -d /mnt/d0 2>/dev/null").trim(), "");
    g.send("poweroff -f\n");
    assert_eq!(g.wait().code(), Some(0), "{}", g.errors());
    assert!(
        fs::read(&image).unwrap() == before,
        "the guest wrote to the image"
    );
    // Two writers are one too many.
    let mut first = boot(&["busybox", "--engine", "bt", "--disk", &image]);
    let mut second = Guest::start(&["run", "busybox", "--disk", &image]);
    assert_eq!(second.wait().code(), Some(2));
    assert!(second.errors().contains("in use"), "{}", second.errors());
    first.send("poweroff -f\n");
    assert_eq!(first.wait().code(), Some(0));
}

/// In a user namespace of our own, where a small file system can be mounted.
#[test]
fn a_full_host_disk_is_an_io_error_and_a_message() {
    if !ready("busybox") {
        return;
    }
    let can = Command::new("unshare")
        .args(["-rm", "mount", "-t", "tmpfs", "t", "/mnt"])
        .output();
    if !can.is_ok_and(|o| o.status.success()) {
        println!("skipped: no user namespace with a mount of its own");
        return;
    }
    for format in ["raw", "qcow2"] {
        let place = Place::new(&format!("full-{format}"));
        let (dir, exe) = (place.path(""), env!("CARGO_BIN_EXE_mimeo"));
        let script = format!(
            "mount -t tmpfs -o size=4m t {dir} && {exe} disk create {dir}d 64M --format {format} && exec {exe} run debian --engine bt --disk {dir}d,format={format},serial=full"
        );
        let mut g = Guest::spawn(Command::new("unshare").args(["-rm", "sh", "-c", &script]));
        // Where the guest has a root disk of its own, this one is not the first.
        g.shell("for d in /sys/block/vd*; do grep -q full $d/serial && disk=/dev/${d##*/}; done");
        let said = g.shell("dd if=/dev/urandom of=$disk bs=1M count=16 conv=fsync 2>&1");
        assert!(said.contains("I/O error"), "{said}");
        assert!(g.errors().contains("No space left"), "{}", g.errors());
        assert_eq!(g.shell("echo alive").trim(), "alive");
        g.send("poweroff -f\n");
        assert_eq!(g.wait().code(), Some(0), "{}", g.errors());
    }
}

/// A folder is read, copied and changed by the guest; and cannot be left.
fn share(guest: &'static str, engine: &str, transport: &str, mount: &str, protocol: &str) {
    if !available(guest) {
        return;
    }
    let place = Place::new(&format!("share-{protocol}-{engine}"));
    let tree = place.tree();
    fs::write(place.0.join("secret"), "the host's").unwrap();
    std::os::unix::fs::symlink(place.path("secret"), tree.join("absolute")).unwrap();
    std::os::unix::fs::symlink("../secret", tree.join("up")).unwrap();
    let hash = hash_on_host(&tree);
    let rw = format!("{}:work,{protocol}", tree.display());
    let ro = format!("{}:fixed:ro,{protocol}", tree.display());
    let args = ["--transport", transport, "--share", &rw, "--share", &ro];
    let mut g = boot(&[&[guest, "--engine", engine], &args[..]].concat());
    g.shell("mkdir /w /r");
    for (tag, dir) in [("work", "/w"), ("fixed", "/r")] {
        assert_eq!(g.shell(&format!("mount {mount} {tag} {dir}")).trim(), "");
    }
    assert_eq!(g.shell(&format!("cd /w && {HASH}; cd /")).trim(), hash);
    assert_eq!(g.shell(&format!("cd /r && {HASH}; cd /")).trim(), hash);
    // Links lead where the guest's own names lead.
    assert!(!g.shell("cat /w/absolute /w/up 2>&1").contains("the host's"));
    assert!(
        !g.shell("cat /w/../secret /w/d0/../../secret 2>&1")
            .contains("the host's")
    );
    assert!(g.shell("touch /r/new 2>&1").contains("Read-only"));
    assert_eq!(
        g.shell("cp -a /r/. /tmp/ && cp -a /tmp/d0 /w/copied && mv /w/copied /w/moved")
            .trim(),
        ""
    );
    assert_eq!(
        g.shell("rm -r /w/d1 && ln /w/moved/deeper/f5 /w/hard && sync")
            .trim(),
        ""
    );
    let (from, to) = (tree.join("d0"), tree.join("moved"));
    assert_eq!(hash_on_host(&to), hash_on_host(&from));
    assert!(!tree.join("d1").exists() && tree.join("hard").exists());
    // The folder goes away under the guest.
    fs::remove_dir_all(&tree).unwrap();
    std::thread::sleep(Duration::from_millis(1100));
    g.shell("echo 3 > /proc/sys/vm/drop_caches");
    let said = g.shell("cat /w/d2/deeper/f20 2>&1 >/dev/null; echo x > /w/more");
    assert!(
        said.contains("No such file") || said.contains("Stale"),
        "{said}"
    );
    assert_eq!(g.shell("echo alive").trim(), "alive");
    g.send("poweroff -f\n");
    assert_eq!(g.wait().code(), Some(0), "{}", g.errors());
}

#[test]
fn bt_virtio_fs_on_pci() {
    share("busybox", "bt", "pci", "-t virtiofs", "fs");
}

#[test]
fn interp_virtio_fs_over_mmio() {
    share("busybox", "interp", "mmio", "-t virtiofs", "fs");
}

#[test]
fn bt_9p_on_pci() {
    let mount = "-t 9p -o trans=virtio,version=9p2000.L,msize=131072";
    share("busybox-generic", "bt", "pci", mount, "9p");
}

#[test]
fn entropy_console_and_balloon() {
    if !available("busybox") {
        return;
    }
    let place = Place::new("small");
    let log = place.path("console");
    let console = format!("file:{log}");
    let mut g = boot(&[
        "busybox",
        "--engine",
        "bt",
        "-m",
        "512M",
        "--console",
        &console,
    ]);
    assert!(
        g.shell("cat /sys/class/misc/hw_random/rng_current")
            .contains("virtio_rng")
    );
    assert_eq!(g.shell("head -c 1000 /dev/hwrng | wc -c").trim(), "1000");
    g.shell("echo through virtio > /dev/hvc0");
    let deadline = Instant::now() + PATIENCE;
    while !fs::read_to_string(&log).unwrap().contains("through virtio") {
        assert!(
            Instant::now() < deadline,
            "nothing came through the console"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    // 200 MB that the guest frees go back to the host.
    g.shell("mount -t tmpfs -o size=400m t /mnt && dd if=/dev/zero of=/mnt/x bs=1M count=200");
    let full = status_field(g.pid(), "VmRSS:");
    g.shell("rm /mnt/x");
    let enough = 180 << 10;
    while status_field(g.pid(), "VmRSS:") + enough > full {
        let now = status_field(g.pid(), "VmRSS:");
        assert!(Instant::now() < deadline, "{full} KB before, {now} KB now");
        std::thread::sleep(Duration::from_millis(100));
    }
    g.send("poweroff -f\n");
    assert_eq!(g.wait().code(), Some(0), "{}", g.errors());
}

#[test]
fn a_balloon_takes_what_it_is_told_to() {
    if !available("busybox") {
        return;
    }
    let total = |size: &str| {
        let mut g = boot(&[
            "busybox",
            "--engine",
            "bt",
            "-m",
            "512M",
            "--balloon-size",
            size,
        ]);
        let deadline = Instant::now() + PATIENCE;
        let free = |g: &mut Guest| {
            let text = g.shell("grep MemTotal /proc/meminfo");
            text.split_whitespace()
                .nth(1)
                .unwrap()
                .parse::<u64>()
                .unwrap()
        };
        let want = if size == "0" { u64::MAX } else { 300 << 10 };
        let mut now = free(&mut g);
        while now > want {
            assert!(
                Instant::now() < deadline,
                "the balloon stays small: {now} KB"
            );
            std::thread::sleep(Duration::from_millis(100));
            now = free(&mut g);
        }
        g.send("poweroff -f\n");
        assert_eq!(g.wait().code(), Some(0), "{}", g.errors());
        now
    };
    assert!(total("0") - total("200M") >= 190 << 10);
}
