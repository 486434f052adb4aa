//! The command line.

use clap::{Args, Parser, Subcommand};
use mimeo_arch_x86::cpuid::Feature;
use mimeo_machines::spec::{
    AllowHost, BoardKind, DiskFormat, DiskSpec, EngineKind, IpNet, Mac, NetSpec, OnTripleFault,
    OptionalDevice, Publish, ShareSpec, SpecError, Transport, VsockSpec, parse_size,
};
use mimeo_replay::lockstep::Stride;
use std::path::PathBuf;

/// Boots unmodified operating systems in an ordinary process, with or without /dev/kvm.
#[derive(Debug, Parser)]
#[command(name = "mimeo", version, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boot a machine: stay with it until it ends, or leave it running (-d).
    #[command(after_long_help = RUN_HELP)]
    Run(Box<RunArgs>),
    /// List machines.
    Ps(PsArgs),
    /// Print what a machine's guest said on its serial port.
    Logs(LogsArgs),
    /// Sit down at a machine's serial port. Ctrl-A x leaves it again.
    Console {
        /// The machine.
        name: String,
    },
    /// Run a command in a machine's guest, by its agent.
    #[command(after_long_help = EXEC_HELP)]
    Exec(ExecArgs),
    /// Copy files and trees between the host and a machine's guest, by its agent.
    #[command(after_long_help = CP_HELP)]
    Cp {
        /// What: a path, or NAME:PATH in a guest. PATH/. means what is in it.
        source: String,
        /// Where to: the same.
        destination: String,
    },
    /// Shut machines down: by the guest's agent or the power button, at last by force.
    Stop(StopArgs),
    /// Start a machine again that has ended, with the same flags, in the background.
    Start {
        /// The machine.
        name: String,
    },
    /// Send a signal to a machine's process.
    Kill(KillArgs),
    /// Forget machines that have ended, with their logs.
    Rm(RmArgs),
    /// Wait until machines end, and print their exit statuses.
    Wait {
        /// The machines.
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Print everything that is known of machines, as JSON.
    Inspect {
        /// The machines.
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Print the machine that flags and files describe, as a file for `mimeo run -f`.
    Spec(Box<RunArgs>),
    /// Write the guest agent, a static program for any x86-64 Linux, to a file.
    #[command(after_long_help = AGENT_HELP)]
    Agent {
        /// The file.
        #[arg(default_value = "mimeo-agent")]
        file: PathBuf,
    },
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a directory.
    Man {
        /// The directory; made if it is not there.
        directory: PathBuf,
    },
    /// Run a virtual switch that machines join with --net switch=NAME. They start one themselves where
    /// there is none; this one stays when the last has left.
    Switch {
        /// Its name.
        #[arg(value_parser = switch_name)]
        name: NetSpec,
        /// Serve the listening socket that is standard input until nobody is left.
        #[arg(long, hide = true)]
        on_stdin: bool,
    },
    /// Print the machine that the flags describe: address map, ports, interrupt lines.
    Manifest(Box<MachineArgs>),
    /// Reaches sockets of the host for a jailed machine; standard input is its end of a pair.
    #[command(hide = true)]
    VsockConnect {
        /// The guest's port P of the host is PATH_P.
        path: PathBuf,
    },
    /// Make, describe and convert disk images.
    #[command(subcommand, after_long_help = DISK_HELP)]
    Disk(DiskCommand),
}

const EXEC_HELP: &str = "\
Examples:
  mimeo exec web -- uname -a
  mimeo exec -it web sh
  tar c . | mimeo exec -i web -- tar x -C /srv

Exit status: the command's; 128 + N when signal N ended it; 127 when there is no such command, 126
when it cannot be executed, 125 when mimeo itself fails.";

const CP_HELP: &str = "\
Examples:
  mimeo cp notes.txt web:/root/
  mimeo cp web:/var/log ./logs
  mimeo cp site/. web:/srv/www";

const AGENT_HELP: &str = "\
In a guest that has not got it (the quickstart guests have): put the file anywhere, load the driver
(modprobe vmw_vsock_virtio_transport) and run it as root, or give it to systemd:
  [Service]
  ExecStart=/usr/local/sbin/mimeo-agent
  [Install]
  WantedBy=multi-user.target";

/// Which machines to list.
#[derive(Debug, Args)]
pub struct PsArgs {
    /// Those that have ended, too.
    #[arg(short, long)]
    pub all: bool,
    /// Names only.
    #[arg(short, long)]
    pub quiet: bool,
    /// As JSON.
    #[arg(long)]
    pub json: bool,
}

/// What to print of a log.
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// The machine.
    pub name: String,
    /// Go on until the machine ends.
    #[arg(short, long)]
    pub follow: bool,
    /// Only the last N lines.
    #[arg(short = 'n', long, value_name = "N")]
    pub tail: Option<usize>,
}

/// What to run in a guest.
#[derive(Debug, Args)]
pub struct ExecArgs {
    /// Hand standard input on.
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the command a terminal.
    #[arg(short, long)]
    pub tty: bool,
    /// A variable of the environment; without a value the host's own.
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// The directory that it runs in; the user's home otherwise.
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// The user that it runs as, with a group if wanted, by name or number; root otherwise.
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// The machine.
    pub name: String,
    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<std::ffi::OsString>,
}

/// Which machines to shut down.
#[derive(Debug, Args)]
pub struct StopArgs {
    /// How long the guest may take before it is ended by force.
    #[arg(short, long, value_name = "SECONDS", default_value_t = 30)]
    pub time: u32,
    /// All that run.
    #[arg(short, long, conflicts_with = "names")]
    pub all: bool,
    /// The machines.
    #[arg(required_unless_present = "all")]
    pub names: Vec<String>,
}

/// Which processes get which signal.
#[derive(Debug, Args)]
pub struct KillArgs {
    /// The signal, by name or number.
    #[arg(short, long, value_name = "SIGNAL", default_value = "KILL")]
    pub signal: String,
    /// All that run.
    #[arg(short, long, conflicts_with = "names")]
    pub all: bool,
    /// The machines.
    #[arg(required_unless_present = "all")]
    pub names: Vec<String>,
}

/// Which machines to forget.
#[derive(Debug, Args)]
pub struct RmArgs {
    /// End them first where they run.
    #[arg(short, long)]
    pub force: bool,
    /// All that have ended (with --force: all).
    #[arg(short, long, conflicts_with = "names")]
    pub all: bool,
    /// The machines.
    #[arg(required_unless_present = "all")]
    pub names: Vec<String>,
}

const DISK_HELP: &str = "\
Examples:
  mimeo disk create root.qcow2 8G
  mimeo disk create clone.qcow2 --backing root.qcow2
      An image that holds only what differs from root.qcow2, which must not change any more.
  mimeo disk convert clone.qcow2 whole.img
  mimeo disk info clone.qcow2";

/// What to do with disk images.
#[derive(Debug, Subcommand)]
pub enum DiskCommand {
    /// Make an empty image, or one that holds the differences to another.
    Create {
        /// The new image; its name tells the format (.qcow2, otherwise raw).
        file: PathBuf,
        /// Bytes that the guest sees: a number with M, G or T; the backing image's without.
        #[arg(value_parser = size)]
        size: Option<u64>,
        /// The format: raw or qcow2.
        #[arg(long, value_name = "NAME")]
        format: Option<DiskFormat>,
        /// The image that shows where this one holds nothing; named from the new image's folder.
        #[arg(long, value_name = "FILE")]
        backing: Option<PathBuf>,
        /// The backing image's format.
        #[arg(long, value_name = "NAME", requires = "backing")]
        backing_format: Option<DiskFormat>,
    },
    /// Describe an image.
    Info {
        /// The image.
        file: PathBuf,
        /// Its format, where its name does not tell.
        #[arg(long, value_name = "NAME")]
        format: Option<DiskFormat>,
    },
    /// Copy an image with all that it shows into a new one of another format.
    Convert {
        /// The image.
        from: PathBuf,
        /// The new one; its name tells the format.
        to: PathBuf,
        /// The old one's format, where its name does not tell.
        #[arg(long, value_name = "NAME")]
        from_format: Option<DiskFormat>,
        /// The new one's format.
        #[arg(long, value_name = "NAME")]
        format: Option<DiskFormat>,
    },
}

const RUN_HELP: &str = "\
Examples:
  mimeo run debian
      Debian with apt to a shell prompt, made of packages and cached on first use (minutes); the
      current folder is at /mnt/host. mimeo run busybox is the small one.
  echo 'uname -a; poweroff -f' | mimeo run debian
      The same with commands from a pipe.
  mimeo run --kernel vmlinuz --initrd initrd.img --append 'console=ttyS0 root=/dev/vda1'
      Any kernel: bzImage, ELF vmlinux (PVH or plain), Multiboot 1. The kind is seen in the file.
  mimeo run --kernel test.elf --device debug-exit --device testdev --timeout 30
      A bare-metal test program that ends through port 0xf4.
  mimeo run debian --disk data.qcow2 --disk /usr/share/images/base.img,snapshot
      Two disks, /dev/vda and /dev/vdb; what is written to the second is forgotten.
  mimeo run debian --share .:here --share /usr/share/doc:doc:ro
      Two folders of the host's: mount -t virtiofs here /mnt, in the guest.
  mimeo run debian --publish 8080:80
      Port 8080 of this host leads to port 80 of the guest.
  mimeo run debian --net switch=lab
      One of several machines on a network of their own.
  mimeo run debian --deny-net 0.0.0.0/0 --deny-net ::/0 --allow-host=192.0.2.7 --pcap net.pcap
      A guest that reaches one address, and a record of what it sent.
  mimeo run debian -m 1G --cpus 4 --cpu x86-64-v2,+sha
      More memory, more CPUs, another CPU model.

Keys: Ctrl-A x ends the machine, Ctrl-A h shows help, Ctrl-A Ctrl-A sends Ctrl-A.

  mimeo run -d --name web debian
      In the background: mimeo ps, logs, console, exec, cp, stop, kill, rm live with it.
  mimeo run -f vm.toml -m 1G
      Flags from a file, one replaced; mimeo spec prints such a file.

Exit status:
  0     the guest powered itself off
  2     a flag or a file cannot be used; nothing was started
  4     the host or the monitor failed
  6     the guest asked for a reset and --no-reboot was given
  8     triple fault (with --on-triple-fault exit)
  10    ended from the keyboard (Ctrl-A x)
  124   the --timeout passed
  odd   (v << 1) | 1: the guest wrote v to the debug-exit device
A signal that ends mimeo ends it as that signal.";

/// The machine itself.
#[derive(Debug, Args)]
pub struct MachineArgs {
    /// Memory: a number with M or G.
    #[arg(short = 'm', long, value_name = "SIZE", default_value = "256M", value_parser = size)]
    pub memory: u64,
    /// Number of CPUs, each a thread of the host.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub cpus: u32,
    /// CPU model with features to add and remove: x86-64-v2, x86-64-v3 or host; `help` lists the
    /// features.
    #[arg(long, value_name = "MODEL[,+F][,-F]", default_value = "x86-64-v3")]
    pub cpu: String,
    /// Board.
    #[arg(long, value_name = "NAME", default_value_t = BoardKind::Microvm)]
    pub machine: BoardKind,
    /// What executes the guest: interp (interpreter), bt (binary translator), or auto: bt where the host
    /// allows it, else interp, with a sentence that says why.
    #[arg(long, value_name = "NAME", default_value_t = EngineKind::Auto)]
    pub engine: EngineKind,
    /// Have an independent verifier check every translated block before it runs (slower to start).
    #[arg(long)]
    pub paranoid: bool,
    /// Run the translator and the interpreter in lockstep and stop at the first difference: after every
    /// block, every N blocks, or `chained`: a millisecond of code as it normally runs. Deterministic
    /// time, as for --record; very slow.
    #[arg(
        long,
        value_name = "N|chained",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "1",
        value_parser = stride
    )]
    pub verify: Option<Stride>,
    /// When the machine has ended, show the translated blocks that hold the guest instruction at this
    /// linear address, guest and host code, and how often it was entered.
    #[arg(long, value_name = "ADDR", value_parser = address)]
    pub trace: Option<u64>,
    /// Do as if the host's CPU lacked these features.
    #[arg(long, value_name = "F,F", value_delimiter = ',', value_parser = feature, hide = true)]
    pub mask_host_cpu: Vec<Feature>,
    /// Add a device: debug-exit (QEMU's isa-debug-exit, port 0xf4) or testdev (QEMU's pc-testdev).
    #[arg(long = "device", value_name = "NAME")]
    pub devices: Vec<OptionalDevice>,
    /// How virtio devices are reached: pci, or mmio (registers in memory that ACPI announces).
    #[arg(long, value_name = "NAME", default_value_t = Transport::Pci)]
    pub transport: Transport,
    /// An entropy device (virtio-rng) that hands the guest the host's random bytes: on or off.
    #[arg(long, value_name = "on|off", default_value = "on", value_parser = switch, action = clap::ArgAction::Set)]
    pub rng: bool,
    /// A memory balloon (virtio-balloon): pages that the guest has no use for go back to the host, on
    /// or off.
    #[arg(long, value_name = "on|off", default_value = "on", value_parser = switch, action = clap::ArgAction::Set)]
    pub balloon: bool,
    /// Memory that the balloon asks the guest to give up: a number with M or G.
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = size)]
    pub balloon_size: u64,
    /// Add a disk (virtio-blk): an image file or block device, raw or, by its name or with
    /// format=qcow2, qcow2. `ro`: the guest cannot write. `snapshot`: what it writes is gone
    /// afterwards. `serial=TEXT`, `queues=N`: what the guest sees.
    #[arg(long = "disk", value_name = "FILE[,ro|,snapshot][,...]")]
    pub disks: Vec<DiskSpec>,
    /// Share a folder of the host's under a tag, by virtio-fs (mount -t virtiofs TAG /mnt) or by 9p
    /// (mount -t 9p -o trans=virtio TAG /mnt). `ro`: the guest cannot change anything in it.
    #[arg(long = "share", value_name = "HOSTDIR:TAG[:ro][,fs|,9p]")]
    pub shares: Vec<ShareSpec>,
    /// A socket device (virtio-vsock): programs of the host reach the guest's port P by connecting to
    /// SOCKET and saying "CONNECT P"; the guest's connections to the host's port P reach SOCKET_P.
    /// Without the flag a machine with a name has one for mimeo exec and mimeo cp.
    #[arg(long, value_name = "cid=N,path=SOCKET|off")]
    pub vsock: Option<VsockArg>,
    /// What the network card is connected to: user (a NAT in the process, the default), none,
    /// tap=INTERFACE, switch=NAME (shared by the user's machines; vlan=N puts the port into a VLAN),
    /// passt (starts Debian's passt) or passt=SOCKET.
    #[arg(
        long,
        value_name = "user[,dns=ADDRESS]|none|tap=NAME|switch=NAME[,vlan=N]|passt[=SOCKET]"
    )]
    pub net: Option<NetSpec>,
    /// The network card's address.
    #[arg(long, value_name = "ADDRESS")]
    pub mac: Option<Mac>,
    /// Let a port of this host lead into the guest (user network).
    #[arg(long, value_name = "[ADDRESS:]HOSTPORT:GUESTPORT[/udp]")]
    pub publish: Vec<Publish>,
    /// Let the guest reach this host: its loopback at 10.0.2.2 and fec0::2, its other addresses; or, with
    /// a value, an address or network that --deny-net denies (user network).
    #[arg(long, value_name = "ADDRESS[/BITS]", num_args = 0..=1, require_equals = true, default_missing_value = "host")]
    pub allow_host: Vec<AllowHost>,
    /// Keep the guest from an address or network; 0.0.0.0/0 and ::/0 are everything (user network).
    #[arg(long, value_name = "ADDRESS[/BITS]")]
    pub deny_net: Vec<IpNet>,
    /// Record all frames into FILE, for tshark and tcpdump.
    #[arg(long, value_name = "FILE")]
    pub pcap: Option<PathBuf>,
    /// What a triple fault does: exit (report it and end) or reset (as a PC does).
    #[arg(long, value_name = "WHAT", default_value_t = OnTripleFault::Exit)]
    pub on_triple_fault: OnTripleFault,
}

/// Everything that `mimeo run` takes.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// A named guest: `debian` (Debian's userland and cloud kernel), `debian-generic` (with the kernel
    /// for everything), `busybox`, `busybox-generic` (those kernels with busybox alone, in memory) or
    /// `debian-stable` (the kernel of Debian's current release, with busybox).
    #[arg(value_name = "GUEST")]
    pub guest: Option<String>,
    /// Take settings from a TOML file: the long flags' names with their values, and `guest`. Flags
    /// that are given as well replace the file's.
    #[arg(short = 'f', long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// The machine's name for ps, exec, stop and the others; one is made up otherwise.
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Leave the machine running in the background and print its name.
    #[arg(short, long)]
    pub detach: bool,
    /// Forget the machine when it ends. A machine in the foreground without --name is forgotten
    /// anyway.
    #[arg(long)]
    pub rm: bool,
    /// This process is the background of a machine with this name.
    #[arg(long, value_name = "NAME", hide = true)]
    pub detached_as: Option<String>,
    /// Kernel to boot; its kind is recognised from its bytes.
    #[arg(long, value_name = "FILE", conflicts_with = "guest")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk or module; several are joined (Linux) or passed one by one (Multiboot).
    #[arg(long, value_name = "FILE")]
    pub initrd: Vec<PathBuf>,
    /// Kernel command line; for a named guest, words to add to its own.
    #[arg(
        long,
        value_name = "STRING",
        default_value = "",
        allow_hyphen_values = true
    )]
    pub append: String,
    /// The machine.
    #[command(flatten)]
    pub machine: MachineArgs,
    /// Where the first serial port leads: stdio, file:PATH or none.
    #[arg(long, value_name = "WHERE", default_value = "stdio")]
    pub serial: SerialTarget,
    /// Where a virtio console (hvc0 in the guest) leads: stdio, file:PATH or none. For a shell on it:
    /// --console stdio --serial none --append console=hvc0.
    #[arg(long, value_name = "WHERE", default_value = "none")]
    pub console: SerialTarget,
    /// End the machine after this many seconds.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub timeout: Option<std::time::Duration>,
    /// End instead of starting again when the guest reboots.
    #[arg(long)]
    pub no_reboot: bool,
    /// Run without seccomp and Landlock (for debugging mimeo itself).
    #[arg(long)]
    pub no_jail: bool,
    /// Run deterministically and write everything from outside the CPUs to FILE: the CPUs take turns
    /// on one thread and time follows the instructions.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["replay", "verify"])]
    pub record: Option<PathBuf>,
    /// Run again what --record wrote, with the same flags and files; ends with the same state or
    /// says where it differs.
    #[arg(long, value_name = "FILE", conflicts_with = "verify")]
    pub replay: Option<PathBuf>,
    /// Print counters of the engine when the machine has ended, and the CPUs if it timed out.
    #[arg(long)]
    pub stats: bool,
}

impl RunArgs {
    /// Whether the run follows instructions instead of the host's clock.
    pub fn deterministic(&self) -> bool {
        self.record.is_some() || self.replay.is_some() || self.machine.verify.is_some()
    }
}

/// A socket device, or none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VsockArg {
    /// None, not even for mimeo's own use.
    Off,
    /// This one.
    On(VsockSpec),
}

impl std::str::FromStr for VsockArg {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "off" => Ok(Self::Off),
            s => s
                .parse()
                .map(Self::On)
                .map_err(|e: SpecError| e.to_string()),
        }
    }
}

/// Where a serial port leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SerialTarget {
    /// The terminal, or whatever standard input and output are.
    Stdio,
    /// Output into a file; no input.
    File(PathBuf),
    /// Nowhere.
    None,
}

impl std::str::FromStr for SerialTarget {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match (s, s.strip_prefix("file:")) {
            ("stdio", _) => Ok(Self::Stdio),
            ("none", _) => Ok(Self::None),
            (_, Some(path)) if !path.is_empty() => Ok(Self::File(path.into())),
            _ => Err(format!(
                "a serial port cannot lead to `{s}`: use stdio, file:PATH or none"
            )),
        }
    }
}

fn switch_name(text: &str) -> Result<NetSpec, String> {
    let switch = format!("switch={text}").parse();
    switch
        .map_err(|_| format!("`{text}` is not a switch's name: write up to 15 letters and digits"))
}

fn switch(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(format!("`{text}` is neither on nor off")),
    }
}

fn size(text: &str) -> Result<u64, String> {
    parse_size(text).map_err(|e| e.to_string())
}

fn stride(text: &str) -> Result<Stride, String> {
    if text == "chained" {
        return Ok(Stride::Time(std::time::Duration::from_millis(1)));
    }
    match text.parse() {
        Ok(n @ 1..) => Ok(Stride::Turns(n)),
        _ => Err(format!(
            "`{text}` is neither a number of blocks nor `chained`"
        )),
    }
}

/// A linear address in hexadecimal, with or without 0x.
fn address(text: &str) -> Result<u64, String> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    u64::from_str_radix(digits, 16).map_err(|_| {
        format!("`{text}` is not an address in hexadecimal, such as 0xffffffff81000000")
    })
}

fn feature(text: &str) -> Result<Feature, String> {
    Feature::by_name(&text.to_ascii_lowercase())
        .ok_or_else(|| format!("`{text}` is not the name of a CPU feature, such as bmi2"))
}

fn seconds(text: &str) -> Result<std::time::Duration, String> {
    let error = || format!("`{text}` is not a number of seconds, such as 30 or 0.5");
    let s: f64 = text.parse().map_err(|_| error())?;
    std::time::Duration::try_from_secs_f64(s).map_err(|_| error())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(args: &[&str]) -> Result<RunArgs, clap::Error> {
        let all = ["mimeo", "run"].iter().chain(args);
        Cli::try_parse_from(all).map(|cli| match cli.command {
            Command::Run(run) => *run,
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_are_read() {
        let a = parse(&[
            "--kernel",
            "k",
            "--initrd",
            "a",
            "--initrd",
            "b",
            "--append",
            "-x y",
            "-m",
            "1G",
            "--cpus",
            "4",
            "--serial",
            "file:log",
            "--device",
            "testdev",
            "--timeout",
            "1.5",
        ])
        .unwrap();
        assert_eq!(a.initrd.len(), 2);
        assert_eq!(a.append, "-x y");
        assert_eq!((a.machine.memory, a.machine.cpus), (1 << 30, 4));
        assert_eq!(a.serial, SerialTarget::File("log".into()));
        assert_eq!(a.machine.devices, [OptionalDevice::Testdev]);
        assert_eq!(a.timeout.unwrap().as_millis(), 1500);
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(parse(&["debian", "--kernel", "k"]).is_err());
        assert!(parse(&["debian", "-m", "nonsense"]).is_err());
        assert!(parse(&["debian", "--timeout", "-1"]).is_err());
        assert!(parse(&["debian", "--serial", "file:"]).is_err());
        assert!(parse(&["debian", "--engine", "warp"]).is_err());
    }
}
