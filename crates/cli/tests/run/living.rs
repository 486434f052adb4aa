//! Living with machines: names, the background, the agent, the control socket. Each test has a
//! runtime directory of its own.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(240);

/// A user's machines.
struct User {
    dir: PathBuf,
}

impl User {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("mimeo-living-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
        Self { dir }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut c = Command::new(env!("CARGO_BIN_EXE_mimeo"));
        c.args(args)
            .env("XDG_RUNTIME_DIR", &self.dir)
            .stdin(Stdio::null());
        c
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// What a command that must work prints.
    fn ok(&self, args: &[&str]) -> String {
        let out = self.run(args);
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        assert!(out.status.success(), "{args:?}: {}", text(&out.stderr));
        text(&out.stdout)
    }

    /// The status and the error of a command.
    fn fails(&self, args: &[&str]) -> (i32, String) {
        let out = self.run(args);
        let error = String::from_utf8_lossy(&out.stderr).into_owned();
        (out.status.code().unwrap(), error)
    }

    fn spawn(&self, args: &[&str]) -> Child {
        let mut c = self.command(args);
        c.stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        c.spawn().unwrap()
    }

    fn vms(&self) -> Vec<String> {
        let dir = self.dir.join("mimeo/vms");
        let names = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name());
        let names = names.map(|n| n.into_string().unwrap());
        names.filter(|n| !n.starts_with('.')).collect()
    }

    fn inspect(&self, name: &str) -> serde_json::Value {
        let list: serde_json::Value = serde_json::from_str(&self.ok(&["inspect", name])).unwrap();
        list[0].clone()
    }

    /// Whether the guest can be prepared here.
    fn can_run(&self) -> bool {
        let out = self.run(&["run", "busybox", "--serial", "file:/no/such/directory/log"]);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        let ready = said.contains("/no/such/directory/log");
        assert!(ready || std::env::var_os("CI").is_none(), "{said}");
        if !ready {
            println!("skipped: the guest cannot be prepared here: {said}");
        }
        ready
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let _ = self.run(&["rm", "-af"]);
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what} did not come");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Every file below `dir` with its mode and contents.
fn tree(dir: &Path) -> Vec<(PathBuf, u32, Vec<u8>)> {
    let (mut found, mut open) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(at) = open.pop() {
        for entry in fs::read_dir(&at).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let contents = if meta.is_dir() {
                open.push(path.clone());
                Vec::new()
            } else if meta.is_symlink() {
                fs::read_link(&path)
                    .unwrap()
                    .into_os_string()
                    .into_encoded_bytes()
            } else {
                fs::read(&path).unwrap()
            };
            let name = path.strip_prefix(dir).unwrap().to_owned();
            found.push((name, meta.permissions().mode() & 0o777, contents));
        }
    }
    found.sort();
    found
}

#[test]
fn commands_run_in_a_guest_and_files_go_both_ways() {
    let user = User::new("exec");
    if !user.can_run() {
        return;
    }
    assert_eq!(
        user.ok(&["run", "-d", "--name", "web", "busybox", "--engine", "bt"]),
        "web\n"
    );
    // The first one waits for the guest to be there.
    assert_eq!(user.ok(&["exec", "web", "--", "uname", "-s"]), "Linux\n");
    assert_eq!(user.ok(&["exec", "web", "hostname"]), "web\n");
    let both = user.run(&["exec", "web", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!(both.status.code(), Some(7));
    assert_eq!(
        (&both.stdout[..], &both.stderr[..]),
        (&b"out\n"[..], &b"err\n"[..])
    );
    assert_eq!(user.fails(&["exec", "web", "no-such-program"]).0, 127);
    assert_eq!(user.fails(&["exec", "web", "/etc/passwd"]).0, 126);
    assert_eq!(
        user.fails(&["exec", "web", "sh", "-c", "kill -KILL $$"]).0,
        137
    );
    let env = [
        "exec", "-e", "A=5 6", "-w", "/etc", "-u", "7:8", "web", "sh", "-c",
    ];
    let said = user.ok(&[&env[..], &["echo $A $(pwd) $(id -u):$(id -g)"]].concat());
    assert_eq!(said, "5 6 /etc 7:8\n");
    assert!(
        user.fails(&["exec", "-u", "nobody-here", "web", "id"])
            .1
            .contains("nobody-here")
    );
    // A terminal, of its own.
    let said = user.ok(&[
        "exec",
        "-t",
        "web",
        "sh",
        "-c",
        "tty; stty size; test -t 2 && echo yes",
    ]);
    assert_eq!(said, "/dev/pts/0\r\n24 80\r\nyes\r\n");

    // More input than any buffer holds, and its end.
    let big: Vec<u8> = (0..3_000_000u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let mut cat = user.spawn(&["exec", "-i", "web", "cat"]);
    let mut stdin = cat.stdin.take().unwrap();
    let sent = big.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&sent));
    let mut back = Vec::new();
    cat.stdout.take().unwrap().read_to_end(&mut back).unwrap();
    writer.join().unwrap().unwrap();
    assert!(back == big);
    assert!(cat.wait().unwrap().success());

    // A signal for the client is one for the command.
    let mut sleeper = user.spawn(&["exec", "web", "sh", "-c", "echo here; exec sleep 1000"]);
    let mut line = String::new();
    BufReader::new(sleeper.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let pid = sleeper.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(sleeper.wait().unwrap().code(), Some(128 + 15));
    // A client that goes takes its command along.
    let mut sleeper = user.spawn(&["exec", "web", "sh", "-c", "echo here; exec sleep 2000"]);
    BufReader::new(sleeper.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    until("the end of the command", || {
        !user.ok(&["exec", "web", "ps"]).contains("sleep 2000")
    });

    copies(&user, &big);
    shuts_down_without_agent(&user);
}

fn copies(user: &User, big: &[u8]) {
    let here = user.dir.join("tree");
    fs::create_dir_all(here.join("sub/empty")).unwrap();
    fs::write(here.join("big"), big).unwrap();
    fs::write(here.join("sub/script"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(here.join("sub/script"), fs::Permissions::from_mode(0o750)).unwrap();
    std::os::unix::fs::symlink("big", here.join("link")).unwrap();
    let path = |p: &Path| p.display().to_string();
    user.ok(&["cp", &path(&here), "web:/root/"]);
    let inside = user.ok(&[
        "exec",
        "web",
        "sh",
        "-c",
        "stat -c '%a %n' tree/sub/script; readlink tree/link",
    ]);
    assert_eq!(inside, "750 tree/sub/script\nbig\n");
    let back = user.dir.join("back");
    user.ok(&["cp", "web:/root/tree", &path(&back)]);
    assert!(tree(&back) == tree(&here), "the tree is another one");
    user.ok(&["cp", "web:/root/tree/.", &path(&back.join("sub/empty"))]);
    assert!(back.join("sub/empty/big").is_file());
    let (code, error) = user.fails(&["cp", "web:/no/such", &path(&back)]);
    assert!(code == 125 && error.contains("/no/such"), "{error}");
    let (code, error) = user.fails(&["cp", &path(&here), "web:/no/such/place/"]);
    assert!(code == 125 && error.contains("/no/such/place"), "{error}");
    assert_eq!(user.fails(&["cp", "a", "b"]).0, 125);
}

/// Without its agent a guest hears the power button.
fn shuts_down_without_agent(user: &User) {
    // The agent's own end takes the conversation along.
    user.fails(&["exec", "web", "killall", "-9", "mimeo-agent"]);
    assert_eq!(user.ok(&["stop", "--time", "200", "web"]), "web\n");
    assert_eq!(user.inspect("web")["exit"]["status"], 0);
}

#[test]
fn a_machine_in_the_background_is_listed_read_stopped_and_forgotten() {
    let user = User::new("life");
    if !user.can_run() {
        return;
    }
    let file = user.dir.join("vm.toml");
    fs::write(
        &file,
        "guest = \"busybox\"\nname = \"db\"\nengine = \"bt\"\nmemory = \"192M\"\n",
    )
    .unwrap();
    let file = file.display().to_string();
    assert_eq!(user.ok(&["run", "-d", "-f", &file, "-m", "160M"]), "db\n");
    let seen = user.inspect("db");
    assert_eq!(
        (&seen["status"], &seen["memory"]),
        (&"running".into(), &(160u64 << 20).into())
    );
    assert_eq!(user.ok(&["ps", "-q"]), "db\n");
    let json: serde_json::Value = serde_json::from_str(&user.ok(&["ps", "--json"])).unwrap();
    assert_eq!(json[0]["name"], "db");
    let (code, error) = user.fails(&["run", "-d", "--name", "db", "busybox"]);
    assert!(code == 2 && error.contains("in use"), "{error}");
    let (code, error) = user.fails(&["exec", "dd", "true"]);
    assert!(
        code == 125 && error.contains("no machine dd (did you mean db?)"),
        "{error}"
    );
    assert_eq!(user.fails(&["rm", "db"]).0, 125);

    // Two at the console; both see what the guest says to one.
    user.ok(&["exec", "db", "true"]);
    let mut one = user.spawn(&["console", "db"]);
    let mut two = user.spawn(&["console", "db"]);
    until("both consoles", || {
        // Asked of the control socket itself, as another program would.
        let path = user.dir.join("mimeo/vms/db/control");
        let mut stream = UnixStream::connect(path).unwrap();
        stream.write_all(b"{\"request\":\"status\"}\n").unwrap();
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        line.contains("\"consoles\":2")
    });
    let mut keys = one.stdin.take().unwrap();
    keys.write_all(b"echo con''sole\n").unwrap();
    for reader in [&mut one, &mut two] {
        let mut text = Vec::new();
        let mut out = reader.stdout.take().unwrap();
        while !String::from_utf8_lossy(&text).contains("console") {
            let mut buffer = [0; 512];
            let n = out.read(&mut buffer).unwrap();
            assert!(n > 0, "the console ended");
            text.extend_from_slice(&buffer[..n]);
        }
        reader.kill().unwrap();
        reader.wait().unwrap();
    }
    until("the log", || {
        user.ok(&["logs", "-n", "3", "db"]).contains("console")
    });

    let waiter = user.spawn(&["wait", "db"]);
    assert_eq!(user.ok(&["stop", "db"]), "db\n");
    assert_eq!(waiter.wait_with_output().unwrap().stdout, b"0\n");
    assert_eq!(user.ok(&["ps", "-q"]), "");
    assert!(user.ok(&["ps", "-a"]).contains("exited (0)"));
    // Its log stays.
    assert!(user.ok(&["logs", "-f", "db"]).contains("console"));
    assert_eq!(user.fails(&["exec", "db", "true"]).0, 125);
    user.ok(&["rm", "db"]);
    assert_eq!(user.vms(), [""; 0]);
}

#[test]
fn killed_machines_are_cleaned_up_after() {
    let user = User::new("killed");
    if !user.can_run() {
        return;
    }
    let start = ["run", "-d", "--name", "web", "busybox", "--engine", "bt"];
    user.ok(&start);
    let pid = user.inspect("web")["pid"].to_string();
    assert!(
        Command::new("kill")
            .args(["-9", &pid])
            .status()
            .unwrap()
            .success()
    );
    until("the end", || user.ok(&["ps", "-q"]).is_empty());
    assert!(user.ok(&["ps", "-a"]).contains("killed"));
    // Under the same name, by run and by start.
    user.ok(&start);
    user.ok(&["exec", "web", "true"]);
    user.ok(&["kill", "web"]);
    user.ok(&["start", "web"]);
    user.ok(&["exec", "web", "true"]);
    user.ok(&["rm", "-f", "web"]);
    // One that is to be forgotten goes by itself, and after a violent end with the next command.
    user.ok(&[
        "run", "-d", "--rm", "--name", "brief", "busybox", "--engine", "bt",
    ]);
    assert_eq!(user.ok(&["stop", "-t", "200", "brief"]), "brief\n");
    assert_eq!(user.vms(), [""; 0]);
    user.ok(&[
        "run", "-d", "--rm", "--name", "brief", "busybox", "--engine", "bt",
    ]);
    user.ok(&["kill", "brief"]);
    assert_eq!(user.ok(&["ps", "-aq"]), "");
    assert_eq!(user.vms(), [""; 0]);
    // In the foreground nothing is left either.
    let mut front = user.spawn(&["run", "busybox", "--engine", "bt"]);
    front
        .stdin
        .take()
        .unwrap()
        .write_all(b"poweroff -f\n")
        .unwrap();
    assert!(front.wait().unwrap().success());
    assert_eq!(user.vms(), [""; 0]);
}

#[test]
fn what_cannot_be_started_says_so_in_the_foreground() {
    let user = User::new("errors");
    let (code, error) = user.fails(&["run", "-d", "--kernel", "/no/such/kernel"]);
    assert!(code == 2 && error.contains("/no/such/kernel"), "{error}");
    let (code, error) = user.fails(&["run", "-d", "--name", "a/b", "busybox"]);
    assert!(
        code == 2 && error.contains("`a/b` is not a name"),
        "{error}"
    );
    let file = user.dir.join("vm.toml");
    fs::write(&file, "guest = \"debian\"\ncpuss = 2\n").unwrap();
    let (code, error) = user.fails(&["run", "-f", &file.display().to_string()]);
    assert!(
        code == 2 && error.contains("vm.toml:2:1") && error.contains("did you mean cpus?"),
        "{error}"
    );
    assert_eq!(user.ok(&["ps", "-a"]).lines().count(), 1);
}

#[test]
fn the_agent_completions_and_manual_pages_are_written() {
    let user = User::new("files");
    let agent = user.dir.join("agent");
    user.ok(&["agent", &agent.display().to_string()]);
    assert!(fs::read(&agent).unwrap().starts_with(b"\x7fELF"));
    let man = user.dir.join("man");
    user.ok(&["man", &man.display().to_string()]);
    assert!(
        fs::read_to_string(man.join("mimeo-exec.1"))
            .unwrap()
            .contains("workdir")
    );
    for shell in ["bash", "zsh", "fish"] {
        assert!(
            user.ok(&["completions", shell]).contains("inspect"),
            "{shell}"
        );
    }
    let spec = user.ok(&["spec", "busybox", "-m", "1G", "--no-reboot"]);
    assert!(
        spec.contains("memory = \"1G\"\n") && spec.contains("no-reboot = true\n"),
        "{spec}"
    );
}

/// The root file system is made of packages when it is not in the cache: minutes.
#[test]
fn debian_is_a_userland_with_packages() {
    let user = User::new("debian");
    if !user.can_run() {
        return;
    }
    let here = user.dir.join("here");
    fs::create_dir(&here).unwrap();
    fs::write(here.join("note"), "from the host\n").unwrap();
    let start = ["run", "-d", "--name", "deb", "debian", "--engine", "bt"];
    let out = user.command(&start).current_dir(&here).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "{said}");
    if said.contains("without Debian's root file system") {
        assert!(
            std::env::var_os("CI").is_none(),
            "CI must be able to make it: {said}"
        );
        println!("skipped: the root file system cannot be made here: {said}");
        return;
    }
    let inside = |command: &str| user.ok(&["exec", "deb", "bash", "-c", command]);
    assert!(inside("cat /etc/os-release").contains("ID="));
    assert_eq!(
        inside("dpkg-query -W -f '${Status}' apt"),
        "install ok installed"
    );
    // Nothing is left half installed, and dpkg finds nothing wrong.
    assert_eq!(
        inside("dpkg --audit; dpkg -l | grep -c '^i[^i]' || true"),
        "0\n"
    );
    assert!(inside("apt-cache policy apt").contains("Installed: "));
    assert_eq!(
        inside("cat /mnt/host/note; echo back > /mnt/host/answer; hostname"),
        "from the host\ndeb\n"
    );
    assert_eq!(fs::read_to_string(here.join("answer")).unwrap(), "back\n");
    assert!(inside("cat /proc/mounts").contains("/dev/vda / ext4 "));
    inside("echo gone > /root/mark; sync");
    user.ok(&["stop", "-t", "200", "deb"]);
    assert_eq!(user.inspect("deb")["exit"]["status"], 0);
    user.ok(&["start", "deb"]);
    // What a run changed went with it.
    assert_eq!(inside("ls -A /root | grep -c mark || true"), "0\n");
}
