/* The trap catcher of 64-bit programs: see run_at in guest.h. Field offsets are those of struct regs. */
    .code64
    .text
    .align 16
    .globl trap_stubs
trap_stubs:
    .set vector, 0
    .rept 256
    .align 16
    .if vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30
    .else
    push $0
    .endif
    .byte 0x68
    .long vector
    jmp trap_common
    .set vector, vector + 1
    .endr

trap_common:
    sub $32, %rsp
    push %r15
    push %r14
    push %r13
    push %r12
    push %r11
    push %r10
    push %r9
    push %r8
    push %rbp
    push %rdi
    push %rsi
    push %rdx
    push %rcx
    push %rbx
    push %rax
    xor %eax, %eax
    mov %ds, %eax
    mov %rax, 120(%rsp)
    mov %es, %eax
    mov %rax, 128(%rsp)
    mov %fs, %eax
    mov %rax, 136(%rsp)
    mov %gs, %eax
    mov %rax, 144(%rsp)
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    cld
    mov %rsp, %rdi
    mov %rsp, %rbx
    and $-16, %rsp
    call trap_entry
    mov %rbx, %rsp
    test %eax, %eax
    jnz back_to_run_at
    mov 120(%rsp), %eax
    mov %eax, %ds
    mov 128(%rsp), %eax
    mov %eax, %es
    pop %rax
    pop %rbx
    pop %rcx
    pop %rdx
    pop %rsi
    pop %rdi
    pop %rbp
    pop %r8
    pop %r9
    pop %r10
    pop %r11
    pop %r12
    pop %r13
    pop %r14
    pop %r15
    add $48, %rsp               /* the selectors, the vector and the error code */
    iretq

/* By IRET, so that NMIs are unblocked again after one was caught. */
back_to_run_at:
    mov exec_sp, %rax
    push $0x10
    push %rax
    push $2
    push $8
    push $1f
    iretq
1:  pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    ret

    .globl exec_enter, exec_iret
exec_enter:
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, exec_sp
    pushq 200(%rdi)             /* ss */
    pushq 192(%rdi)             /* sp */
    pushq 184(%rdi)             /* flags */
    pushq 176(%rdi)             /* cs */
    pushq 168(%rdi)             /* ip */
    mov 120(%rdi), %eax
    mov %eax, %ds
    mov 128(%rdi), %eax
    mov %eax, %es
    mov 0(%rdi), %rax
    mov 8(%rdi), %rbx
    mov 16(%rdi), %rcx
    mov 24(%rdi), %rdx
    mov 32(%rdi), %rsi
    mov 48(%rdi), %rbp
    mov 56(%rdi), %r8
    mov 64(%rdi), %r9
    mov 72(%rdi), %r10
    mov 80(%rdi), %r11
    mov 88(%rdi), %r12
    mov 96(%rdi), %r13
    mov 104(%rdi), %r14
    mov 112(%rdi), %r15
    mov 40(%rdi), %rdi
exec_iret:
    iretq

/* The start-up code of other CPUs, copied to 0x7000: real mode, then long mode, then ap_main(index). */
    .globl ap_trampoline, ap_trampoline_end
    .code16
ap_trampoline:
    cli
    xor %ax, %ax
    mov %ax, %ds
    lgdtl 0x7000 + ap_gdtr - ap_trampoline
    mov %cr4, %eax
    or $0x20, %eax
    mov %eax, %cr4
    mov 0x7000 + ap_cr3 - ap_trampoline, %eax
    mov %eax, %cr3
    mov $0xc0000080, %ecx
    rdmsr
    or $0x901, %eax
    wrmsr
    mov $0x80010033, %eax
    mov %eax, %cr0
    ljmpl $8, $(0x7000 + 1f - ap_trampoline)
    .code64
1:  mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov 0x7000 + ap_index - ap_trampoline, %edi
    mov 0x7000 + ap_stack - ap_trampoline, %rsp
    mov $ap_main, %eax
    call *%rax
1:  hlt
    jmp 1b
    .align 8
ap_gdt_copy:
    .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff
ap_gdtr:
    .word 23
    .long 0x7000 + ap_gdt_copy - ap_trampoline
    .align 8
    .globl ap_cr3, ap_index, ap_stack
ap_cr3:   .quad 0
ap_index: .quad 0
ap_stack: .quad 0
ap_trampoline_end:
    .bss
    .globl exec_sp
    .align 8
exec_sp: .quad 0
