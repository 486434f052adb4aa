//! A program of 200 bytes for the guest: gives SIGINT and SIGQUIT back their default action and runs its
//! arguments. A POSIX shell starts its background jobs with both ignored, and no program of busybox
//! undoes that.

/// Linux x86-64 machine code; entered with argc at RSP and the vectors above it (System V x86-64 ABI,
/// 3.4.1). System calls: 13 rt_sigaction, 59 execve, 60 exit.
const CODE: &[u8] = &[
    0x48, 0x89, 0xe3, // mov rbx, rsp
    0x6a, 0x00, // push 0: sa_mask
    0x6a, 0x00, // push 0: sa_restorer
    0x6a, 0x00, // push 0: sa_flags
    0x6a, 0x00, // push 0: sa_handler = SIG_DFL
    0x48, 0x89, 0xe6, // mov rsi, rsp
    0x31, 0xd2, // xor edx, edx: no old action
    0x41, 0xba, 0x08, 0x00, 0x00, 0x00, // mov r10d, 8: bytes of a signal set
    0xbf, 0x02, 0x00, 0x00, 0x00, // mov edi, SIGINT
    0xb8, 0x0d, 0x00, 0x00, 0x00, // mov eax, rt_sigaction
    0x0f, 0x05, // syscall
    0xbf, 0x03, 0x00, 0x00, 0x00, // mov edi, SIGQUIT
    0xb8, 0x0d, 0x00, 0x00, 0x00, // mov eax, rt_sigaction
    0x0f, 0x05, // syscall
    0x48, 0x8b, 0x7b, 0x10, // mov rdi, [rbx+16]: argv[1]
    0x48, 0x8d, 0x73, 0x10, // lea rsi, [rbx+16]
    0x48, 0x8b, 0x03, // mov rax, [rbx]: argc
    0x48, 0x8d, 0x54, 0xc3, 0x10, // lea rdx, [rbx+rax*8+16]: the environment
    0xb8, 0x3b, 0x00, 0x00, 0x00, // mov eax, execve
    0x0f, 0x05, // syscall
    0xbf, 0x7f, 0x00, 0x00, 0x00, // mov edi, 127
    0xb8, 0x3c, 0x00, 0x00, 0x00, // mov eax, exit
    0x0f, 0x05, // syscall
];

const HEADERS: u64 = 64 + 56;
const BASE: u64 = 0x40_0000;

/// The program: an ELF header, one program header, the code.
pub(crate) fn program() -> Vec<u8> {
    let mut p = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let len = HEADERS + CODE.len() as u64;
    p.extend([2, 0, 62, 0, 1, 0, 0, 0]); // ET_EXEC, EM_X86_64, version 1
    for word in [BASE + HEADERS, 64, 0] {
        p.extend(u64::to_le_bytes(word)); // entry, program headers, section headers
    }
    p.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0]);
    p.extend([1, 0, 0, 0, 5, 0, 0, 0]); // PT_LOAD, readable and executable
    for word in [0, BASE, BASE, len, len, 4096] {
        p.extend(u64::to_le_bytes(word));
    }
    p.extend(CODE);
    p
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    #[test]
    fn an_ignored_interrupt_is_deadly_again() {
        if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
            println!("skipped: not an x86-64 Linux host");
            return;
        }
        let path = std::env::temp_dir().join(format!("mimeo-undo-{}", std::process::id()));
        std::fs::write(&path, program()).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        let run = |with: &str| {
            let script =
                format!("trap '' INT QUIT; exec {with} /bin/sh -c 'kill -INT $$; exit $X'");
            Command::new("/bin/sh")
                .env("X", "5")
                .args(["-c", &script])
                .status()
                .unwrap()
        };
        // Without it the signal stays ignored, and the environment is passed on.
        assert_eq!(run("").code(), Some(5));
        assert_eq!(run(&path.display().to_string()).signal(), Some(2));
        let failed = Command::new(&path).arg("/nonexistent").status().unwrap();
        assert_eq!(failed.code(), Some(127));
        std::fs::remove_file(&path).unwrap();
    }
}
