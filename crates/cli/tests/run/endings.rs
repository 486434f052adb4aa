//! Every way a machine ends, with guests of a few bytes: Multiboot kernels assembled here.

use crate::support::Guest;
use std::fs;
use std::path::PathBuf;

/// A Multiboot 1 kernel (specification 0.6.96, address fields used) that executes `code` in 32-bit
/// protected mode at 1 MB.
pub fn kernel(name: &str, code: &[u8]) -> PathBuf {
    const MAGIC: u32 = 0x1bad_b002;
    const FLAGS: u32 = 1 << 16;
    const BASE: u32 = 0x10_0000;
    let end = BASE + 32 + code.len() as u32;
    let mut image = Vec::new();
    for word in [
        MAGIC,
        FLAGS,
        0u32.wrapping_sub(MAGIC.wrapping_add(FLAGS)),
        BASE,      // header_addr
        BASE,      // load_addr
        end,       // load_end_addr
        end,       // bss_end_addr
        BASE + 32, // entry_addr
    ] {
        image.extend_from_slice(&word.to_le_bytes());
    }
    image.extend_from_slice(code);
    let path = std::env::temp_dir().join(format!("mimeo-end-{name}-{}", std::process::id()));
    fs::write(&path, image).unwrap();
    path
}

/// Runs `code` and gives the exit status, the console and what Mimeo said.
fn ends(name: &str, code: &[u8], more: &[&str]) -> (Option<i32>, String, String) {
    let path = kernel(name, code);
    let file = path.display().to_string();
    let mut guest =
        Guest::start(&[&["run", "--engine", "interp", "--kernel", &file], more].concat());
    let status = guest.wait().code();
    fs::remove_file(path).unwrap();
    (status, guest.console(), guest.errors())
}

/// mov dx, port; mov eax, value; out dx, (al|ax|eax).
fn out(port: u16, value: u32, size: u8) -> Vec<u8> {
    let mut code = vec![0x66, 0xba];
    code.extend_from_slice(&port.to_le_bytes());
    code.push(0xb8);
    code.extend_from_slice(&value.to_le_bytes());
    code.extend_from_slice(match size {
        1 => &[0xee],
        2 => &[0x66, 0xef],
        _ => &[0xef],
    });
    code
}

/// A kernel that ends with status 0x21 through the debug-exit device.
pub fn debug_exit_kernel(name: &str) -> PathBuf {
    kernel(name, &program(&[&out(0xf4, 0x10, 4)]))
}

/// cli; hlt; jmp to the hlt.
const HALT: &[u8] = &[0xfa, 0xf4, 0xeb, 0xfd];

fn program(parts: &[&[u8]]) -> Vec<u8> {
    let mut code = parts.concat();
    code.extend_from_slice(HALT);
    code
}

#[test]
fn debug_exit() {
    let code = program(&[&out(0xf4, 0x10, 4)]);
    let (status, _, said) = ends("debug", &code, &["--device", "debug-exit"]);
    assert_eq!(status, Some(0x21), "{said}");
    // Without the device the write goes nowhere.
    let (status, _, said) = ends("nodebug", &code, &["--timeout", "1"]);
    assert_eq!(status, Some(124), "{said}");
    assert!(said.contains("time limit"), "{said}");
}

#[test]
fn serial_output_then_power_off() {
    let code = program(&[
        &out(0x3f8, u32::from(b'H'), 1),
        &out(0x3f8, u32::from(b'i'), 1),
        &out(0x604, 5 << 10 | 1 << 13, 2),
    ]);
    let (status, console, said) = ends("off", &code, &[]);
    assert_eq!((status, console.as_str()), (Some(0), "Hi"), "{said}");
    let log = std::env::temp_dir().join(format!("mimeo-serial-{}", std::process::id()));
    let target = format!("file:{}", log.display());
    let (status, console, said) = ends("file", &code, &["--serial", &target]);
    assert_eq!((status, console.as_str()), (Some(0), ""), "{said}");
    assert_eq!(fs::read(&log).unwrap(), b"Hi");
    fs::remove_file(log).unwrap();
    let (status, console, _) = ends("none", &code, &["--serial", "none"]);
    assert_eq!((status, console.as_str()), (Some(0), ""));
}

#[test]
fn resets() {
    for (name, code) in [
        ("i8042", out(0x64, 0xfe, 1)),
        ("port92", out(0x92, 0x01, 1)),
        ("cf9", out(0xcf9, 0x06, 1)),
    ] {
        let (status, _, said) = ends(name, &program(&[&code]), &["--no-reboot"]);
        assert_eq!(status, Some(6), "{name}: {said}");
    }
}

/// A guest that counts its lives in CMOS memory, which a reset keeps: it resets itself at its first
/// life and leaves with the number at its third.
#[test]
fn a_reset_starts_the_payload_again() {
    let mut code = vec![
        0xb0, 0x50, 0xe6, 0x70, // mov al, 50h; out 70h, al
        0xe4, 0x71, // in al, 71h
        0x40, // inc eax
        0xe6, 0x71, // out 71h, al
        0x3c, 0x03, // cmp al, 3
        0x74, 0x06, // je leave
        0xb0, 0xfe, 0xe6, 0x64, // mov al, feh; out 64h, al
        0xeb, 0xfe, // jmp $
    ];
    code.extend_from_slice(&[0x0f, 0xb6, 0xc0, 0xe7, 0xf4]); // leave: movzx eax, al; out f4h, eax
    let (status, _, said) = ends("lives", &program(&[&code]), &["--device", "debug-exit"]);
    assert_eq!(status, Some(7), "{said}");
}

#[test]
fn a_triple_fault_is_explained_or_resets() {
    // lidt of six zero bytes at 7000h, then UD2.
    let code = program(&[&[0x0f, 0x01, 0x1d, 0x00, 0x70, 0x00, 0x00, 0x0f, 0x0b]]);
    let (status, _, said) = ends("triple", &code, &[]);
    assert_eq!(status, Some(8), "{said}");
    for word in [
        "triple fault on vCPU 0",
        "rip 0000000000100027",
        "ud2",
        "exception #Ud",
    ] {
        assert!(said.contains(word), "`{word}` is missing in: {said}");
    }
    let args = ["--on-triple-fault", "reset", "--no-reboot"];
    let (status, _, said) = ends("triplereset", &code, &args);
    assert_eq!(status, Some(6), "{said}");
    assert!(said.contains("triple fault"), "{said}");
}

#[test]
fn the_test_device() {
    // Port e0h keeps what is written; memory at ff000000h too.
    let code = program(&[
        &out(0xe0, 0x1234_5678, 4),
        &[
            0x31, 0xc0, // xor eax, eax
            0x66, 0xba, 0xe0, 0x00, 0xed, // mov dx, e0h; in eax, dx
            0xa3, 0x00, 0x00, 0x00, 0xff, // mov [ff000000h], eax
            0x0f, 0xb6, 0x05, 0x01, 0x00, 0x00, 0xff, // movzx eax, byte [ff000001h]
            0xe7, 0xf4, // out f4h, eax
        ],
    ]);
    let devices = ["--device", "testdev", "--device", "debug-exit"];
    let (status, _, said) = ends("testdev", &code, &devices);
    assert_eq!(status, Some((0x56 << 1) | 1), "{said}");
}

#[test]
fn sleeping_for_ever_costs_nothing_and_the_time_limit_ends_it() {
    let (status, _, said) = ends("sleep", HALT, &["--timeout", "0.5"]);
    assert_eq!(status, Some(124), "{said}");
}

#[test]
fn the_jail_can_be_left_off() {
    let code = program(&[&out(0xf4, 1, 4)]);
    let args = ["--device", "debug-exit", "--no-jail"];
    let (status, _, said) = ends("nojail", &code, &args);
    assert_eq!(status, Some(3), "{said}");
}
