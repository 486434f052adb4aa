/* The trap catcher of 32-bit programs: see run_at in guest.h. Field offsets are those of struct regs. */
    .code32
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
    push %gs
    push %fs
    push %es
    push %ds
    push %ebp
    push %edi
    push %esi
    push %edx
    push %ecx
    push %ebx
    push %eax
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %fs
    mov %eax, %gs
    cld
    mov %esp, %ebx
    mov %ss, %esi
    push %ebx
    call trap_entry
    mov %ebx, %esp
    test %eax, %eax
    jnz back_to_run_at
    pop %eax
    pop %ebx
    pop %ecx
    pop %edx
    pop %esi
    pop %edi
    pop %ebp
    pop %ds
    pop %es
    pop %fs
    pop %gs
    add $8, %esp
    iret

/* By IRET, so that NMIs are unblocked again after one was caught. */
    .globl back_to_run_at
back_to_run_at:
    mov $0x10, %eax
    mov %eax, %ss
    mov exec_sp, %esp
    push $2
    push $8
    push $1f
    iret
1:  pop %ebp
    pop %edi
    pop %esi
    pop %ebx
    ret

    .globl exec_enter, exec_iret
exec_enter:                     /* the registers come in exec_in */
    push %ebx
    push %esi
    push %edi
    push %ebp
    mov %esp, exec_sp
    testl $0x20000, exec_in + 60
    jnz 2f
    testl $3, exec_in + 56
    jnz 1f
    mov exec_in + 68, %eax      /* CPL 0: IRET does not load the stack */
    mov %eax, %ss
    mov exec_in + 64, %esp
    jmp 3f
2:  push exec_in + 84           /* gs fs ds es of virtual-8086 mode */
    push exec_in + 80
    push exec_in + 76
    push exec_in + 72
1:  push exec_in + 68           /* ss */
    push exec_in + 64           /* sp */
3:  push exec_in + 60           /* flags */
    push exec_in + 56           /* cs */
    push exec_in + 52           /* ip */
    mov exec_in + 32, %es
    mov exec_in + 36, %fs
    mov exec_in + 40, %gs
    mov exec_in + 0, %eax
    mov exec_in + 4, %ebx
    mov exec_in + 8, %ecx
    mov exec_in + 12, %edx
    mov exec_in + 16, %esi
    mov exec_in + 20, %edi
    mov exec_in + 24, %ebp
    mov exec_in + 28, %ds
exec_iret:
    iret

    .bss
    .globl exec_sp
    .align 4
exec_sp: .long 0
