/* Multiboot 1 entry: 32-bit protected mode, paging off, EBX = information structure.
 * 64-bit programs go on to long mode through the identity map built here. */

    .section .multiboot, "a"
    .align 4
    .long 0x1badb002, 0, -0x1badb002

    .text
    .code32
    .globl start
start:
    cld
    mov %ebx, %esi
    mov $bss_begin, %edi
    mov $bss_end, %ecx
    sub %edi, %ecx
    xor %eax, %eax
    rep stosb
    mov %esi, boot_info
    mov $boot_stack_top, %esp
#ifdef __x86_64__
    mov $pml4, %edi
    movl $(base_pdpt + 7), (%edi)
    mov $base_pdpt, %edi
    mov $(base_pd + 7), %eax
    mov $4, %ecx
1:  mov %eax, (%edi)
    add $8, %edi
    add $4096, %eax
    loop 1b
    mov $base_pd, %edi
    mov $0xe7, %eax             /* P W U A D PS */
    mov $2048, %ecx
1:  mov %eax, (%edi)
    add $8, %edi
    add $0x200000, %eax
    loop 1b
    mov %cr4, %eax
    or $0x20, %eax
    mov %eax, %cr4
    mov $pml4, %eax
    mov %eax, %cr3
    mov $0xc0000080, %ecx
    rdmsr
    or $0x901, %eax             /* SCE LME NXE */
    wrmsr
    mov $0x80010033, %eax
    mov %eax, %cr0
#endif
    lgdt boot_gdtr
    ljmp $8, $1f
1:  mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %fs
    mov %eax, %gs
    mov %eax, %ss
#ifdef __x86_64__
    .code64
    mov $boot_stack_top, %esp
#endif
    call guest_main
1:  hlt
    jmp 1b

    .data
    .align 8
boot_gdt:
    .quad 0
#ifdef __x86_64__
    .quad 0x00af9b000000ffff
#else
    .quad 0x00cf9b000000ffff
#endif
    .quad 0x00cf93000000ffff
boot_gdtr:
    .word 23
    .long boot_gdt, 0
    .globl boot_info
boot_info:
    .long 0
    .bss
    .align 4096
    .globl pml4, base_pdpt, base_pd
#ifdef __x86_64__
pml4:       .skip 4096
base_pdpt:  .skip 4096
base_pd:    .skip 4 * 4096
#endif
boot_stack: .skip 16384
    .globl boot_stack_top
boot_stack_top:
