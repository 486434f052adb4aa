//! Entering and leaving translated code.
//!
//! `enter` saves the host's callee-saved registers (System V ABI), loads the guest's registers from
//! the context block and jumps to [`Ctx::target`]. Translated code leaves by jumping to the exit
//! label with the site's number in [`Ctx::site`]; that saves everything back and returns from
//! `enter`. x87 state stays in the host's registers all the while (compiled Rust never touches
//! it); YMM (its upper halves only while they are in use) and MXCSR are exchanged because Rust and libc
//! do use them.
#![expect(
    unsafe_code,
    reason = "switching between the host's and the guest's registers"
)]

use crate::ctx::{Ctx, at};
use std::arch::global_asm;

/// Site number of an entry that was refused because [`Ctx::kick`] was set.
pub(crate) const SITE_ABORT: u32 = u32::MAX;
/// Site number of an asynchronous exit at an instruction boundary ([`Ctx::rip`]).
pub(crate) const SITE_KICK: u32 = u32::MAX - 1;
/// Site number of a host fault in translated code ([`Ctx::fault_pc`]).
pub(crate) const SITE_FAULT: u32 = u32::MAX - 2;

/// Site number of a branch to an address that is never translated (target in T).
pub(crate) const SITE_NO_TARGET: u32 = u32::MAX - 3;

global_asm!(
    ".text",
    // Other code generation units of this crate refer to these.
    ".globl mimeo_bt_enter",
    ".hidden mimeo_bt_enter",
    ".globl mimeo_bt_window",
    ".hidden mimeo_bt_window",
    ".globl mimeo_bt_window_end",
    ".hidden mimeo_bt_window_end",
    ".globl mimeo_bt_exit",
    ".hidden mimeo_bt_exit",
    ".p2align 4",
    "mimeo_bt_enter:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "mov [rdi + {host_rsp}], rsp",
    "mov rsp, rdi",
    "stmxcsr [rsp + {host_mxcsr}]",
    "mov dword ptr [rsp + {in_cache}], 1",
    "ldmxcsr [rsp + {mxcsr}]",
    // Upper halves that are loaded count as in use even when they are zero, and then each legacy SSE
    // instruction merges with them: they are loaded only if they hold something.
    "vzeroupper",
    "cmp dword ptr [rsp + {upper}], 0",
    "jne 4f",
    "vmovdqu xmm0, [rsp + {ymm} + 0]",
    "vmovdqu xmm1, [rsp + {ymm} + 32]",
    "vmovdqu xmm2, [rsp + {ymm} + 64]",
    "vmovdqu xmm3, [rsp + {ymm} + 96]",
    "vmovdqu xmm4, [rsp + {ymm} + 128]",
    "vmovdqu xmm5, [rsp + {ymm} + 160]",
    "vmovdqu xmm6, [rsp + {ymm} + 192]",
    "vmovdqu xmm7, [rsp + {ymm} + 224]",
    "vmovdqu xmm8, [rsp + {ymm} + 256]",
    "vmovdqu xmm9, [rsp + {ymm} + 288]",
    "vmovdqu xmm10, [rsp + {ymm} + 320]",
    "vmovdqu xmm11, [rsp + {ymm} + 352]",
    "vmovdqu xmm12, [rsp + {ymm} + 384]",
    "vmovdqu xmm13, [rsp + {ymm} + 416]",
    "vmovdqu xmm14, [rsp + {ymm} + 448]",
    "vmovdqu xmm15, [rsp + {ymm} + 480]",
    "jmp 5f",
    "4:",
    "vmovdqu ymm0, [rsp + {ymm} + 0]",
    "vmovdqu ymm1, [rsp + {ymm} + 32]",
    "vmovdqu ymm2, [rsp + {ymm} + 64]",
    "vmovdqu ymm3, [rsp + {ymm} + 96]",
    "vmovdqu ymm4, [rsp + {ymm} + 128]",
    "vmovdqu ymm5, [rsp + {ymm} + 160]",
    "vmovdqu ymm6, [rsp + {ymm} + 192]",
    "vmovdqu ymm7, [rsp + {ymm} + 224]",
    "vmovdqu ymm8, [rsp + {ymm} + 256]",
    "vmovdqu ymm9, [rsp + {ymm} + 288]",
    "vmovdqu ymm10, [rsp + {ymm} + 320]",
    "vmovdqu ymm11, [rsp + {ymm} + 352]",
    "vmovdqu ymm12, [rsp + {ymm} + 384]",
    "vmovdqu ymm13, [rsp + {ymm} + 416]",
    "vmovdqu ymm14, [rsp + {ymm} + 448]",
    "vmovdqu ymm15, [rsp + {ymm} + 480]",
    "5:",
    "mov rcx, [rsp + 8]",
    "mov rdx, [rsp + 16]",
    "mov rbx, [rsp + 24]",
    "mov r14, [rsp + 32]",
    "mov rbp, [rsp + 40]",
    "mov rsi, [rsp + 48]",
    "mov rdi, [rsp + 56]",
    "mov r8, [rsp + 64]",
    "mov r9, [rsp + 72]",
    "mov r12, [rsp + 96]",
    "mov r13, [rsp + 104]",
    "mov r10, [rsp + {ea}]",
    "mov r11, [rsp + {t}]",
    "mov r15, [rsp + {rl}]",
    // From the look at `kick` to the jump a signal single-steps us (signal.rs).
    "mimeo_bt_window:",
    "cmp dword ptr [rsp + {kick}], 0",
    "jne 2f",
    "mov rax, [rsp + {status}]",
    "add al, 0x7f",
    "sahf",
    "mov rax, [rsp]",
    "jmp [rsp + {target}]",
    "mimeo_bt_window_end:",
    "2:",
    "mov dword ptr [rsp + {site}], {abort}",
    "jmp 3f",
    ".p2align 4",
    "mimeo_bt_exit:",
    "mov [rsp], rax",
    "lahf",
    "seto al",
    "mov [rsp + {status}], ax",
    "mov [rsp + 8], rcx",
    "mov [rsp + 16], rdx",
    "mov [rsp + 24], rbx",
    "mov [rsp + 32], r14",
    "mov [rsp + 40], rbp",
    "mov [rsp + 48], rsi",
    "mov [rsp + 56], rdi",
    "mov [rsp + 64], r8",
    "mov [rsp + 72], r9",
    "mov [rsp + 96], r12",
    "mov [rsp + 104], r13",
    "mov [rsp + {ea}], r10",
    "mov [rsp + {t}], r11",
    "stmxcsr [rsp + {mxcsr}]",
    // XGETBV of ECX = 1 tells which state components are in use (SDM vol. 1, 13.6); AVX's is bit 2.
    "mov eax, 4",
    "cmp dword ptr [rsp + {xinuse}], 0",
    "je 6f",
    "mov ecx, 1",
    "xgetbv",
    "6:",
    "and eax, 4",
    "mov [rsp + {upper}], eax",
    "jnz 7f",
    "vmovdqu [rsp + {ymm} + 0], xmm0",
    "vmovdqu [rsp + {ymm} + 32], xmm1",
    "vmovdqu [rsp + {ymm} + 64], xmm2",
    "vmovdqu [rsp + {ymm} + 96], xmm3",
    "vmovdqu [rsp + {ymm} + 128], xmm4",
    "vmovdqu [rsp + {ymm} + 160], xmm5",
    "vmovdqu [rsp + {ymm} + 192], xmm6",
    "vmovdqu [rsp + {ymm} + 224], xmm7",
    "vmovdqu [rsp + {ymm} + 256], xmm8",
    "vmovdqu [rsp + {ymm} + 288], xmm9",
    "vmovdqu [rsp + {ymm} + 320], xmm10",
    "vmovdqu [rsp + {ymm} + 352], xmm11",
    "vmovdqu [rsp + {ymm} + 384], xmm12",
    "vmovdqu [rsp + {ymm} + 416], xmm13",
    "vmovdqu [rsp + {ymm} + 448], xmm14",
    "vmovdqu [rsp + {ymm} + 480], xmm15",
    "jmp 3f",
    "7:",
    "vmovdqu [rsp + {ymm} + 0], ymm0",
    "vmovdqu [rsp + {ymm} + 32], ymm1",
    "vmovdqu [rsp + {ymm} + 64], ymm2",
    "vmovdqu [rsp + {ymm} + 96], ymm3",
    "vmovdqu [rsp + {ymm} + 128], ymm4",
    "vmovdqu [rsp + {ymm} + 160], ymm5",
    "vmovdqu [rsp + {ymm} + 192], ymm6",
    "vmovdqu [rsp + {ymm} + 224], ymm7",
    "vmovdqu [rsp + {ymm} + 256], ymm8",
    "vmovdqu [rsp + {ymm} + 288], ymm9",
    "vmovdqu [rsp + {ymm} + 320], ymm10",
    "vmovdqu [rsp + {ymm} + 352], ymm11",
    "vmovdqu [rsp + {ymm} + 384], ymm12",
    "vmovdqu [rsp + {ymm} + 416], ymm13",
    "vmovdqu [rsp + {ymm} + 448], ymm14",
    "vmovdqu [rsp + {ymm} + 480], ymm15",
    "3:",
    "vzeroupper",
    "ldmxcsr [rsp + {host_mxcsr}]",
    // `in_cache` stays set until the run loop has looked the site up.
    "mov rsp, [rsp + {host_rsp}]",
    "cld",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    host_rsp = const at!(host_rsp),
    host_mxcsr = const at!(host_mxcsr),
    mxcsr = const at!(mxcsr),
    in_cache = const at!(in_cache),
    kick = const at!(kick),
    ymm = const at!(ymm),
    upper = const at!(upper),
    xinuse = const at!(xinuse),
    ea = const at!(ea),
    t = const at!(t),
    rl = const at!(rl),
    status = const at!(status),
    target = const at!(target),
    site = const at!(site),
    abort = const SITE_ABORT,
);

unsafe extern "sysv64" {
    fn mimeo_bt_enter(gpr: *mut u64);
    fn mimeo_bt_exit();
    fn mimeo_bt_window();
    fn mimeo_bt_window_end();
}

/// Runs translated code from [`Ctx::target`] until it leaves; the site is in [`Ctx::site`].
/// [`Ctx::in_cache`] is still set then.
///
/// # Safety
/// `ctx.target` is an instruction boundary of live translated code of this vCPU's current mode,
/// `ctx.rl` belongs to that mode, the GS base is the distance between the read and
/// the write tables, and nobody else uses `ctx` but through its atomics.
pub(crate) unsafe fn enter(ctx: &Ctx) {
    // SAFETY: the pointer to the register file inside the caller's context block; the callee
    // restores every callee-saved register and its stack pointer.
    unsafe {
        mimeo_bt_enter(
            std::ptr::from_ref(ctx)
                .byte_add(std::mem::offset_of!(Ctx, gpr))
                .cast_mut()
                .cast(),
        )
    }
}

/// The host address that translated code jumps to in order to leave.
pub(crate) fn exit_address() -> u64 {
    mimeo_bt_exit as *const () as u64
}

/// The host addresses in which an entry can no longer be refused.
pub(crate) fn window() -> std::ops::Range<u64> {
    mimeo_bt_window as *const () as u64..mimeo_bt_window_end as *const () as u64
}
