/* Hardware task switches: JMP, CALL, IRET, task gates, 16- and 32-bit TSS, nesting, busy bits, NT,
 * the T bit, CR3, and faults before and after the switch's commit.
 * SDM vol. 3 chapter 8 (task management), tables 8-1, 8-2. */
#include "guest.h"

#define T32 (TEST_SEL + 0x00)
#define T16 (TEST_SEL + 0x08)
#define GATE (TEST_SEL + 0x10)
#define BUSY(selector) (gdt[(selector) / 8] >> 41 & 1)

struct tss16 {
    u16 link, sp0, ss0, sp1, ss1, sp2, ss2, ip, flags, ax, cx, dx, bx, sp, bp, si, di, es, cs, ss, ds, ldt;
};
static struct tss other __attribute__((aligned(128)));
static struct tss16 small __attribute__((aligned(128)));
static u8 other_stack[4096] __attribute__((aligned(16)));
static u32 pointer[2];

/* A 32-bit task that starts at `code` with CPL 0 and marks in its registers. */
static void new_task(const void *code)
{
    memset(&other, 0, 104);
    other.eip = (word)code;
    other.eflags = 2;
    other.esp = (word)(other_stack + sizeof other_stack);
    other.cs = KCS;
    other.ss = other.ds = other.es = other.fs = other.gs = KDS;
    other.eax = 0xa0a0a0a0, other.ebx = 0xb0b0b0b0, other.ecx = 0xc0c0c0c0, other.edx = 0xd0d0d0d0;
    other.esi = 0x51515151, other.edi = 0xd1d1d1d1, other.ebp = 0xbbbbbbbb;
    other.cr3 = 0x5000;
    other.iomap = 103;
    set_gdt(T32, descriptor((word)&other, 103, 0x89, 0));
}

static void set_task_gate(u16 selector, u8 access)
{
    set_gdt(GATE, (u64)selector << 16 | (u64)access << 40);
}

/* A fault inside a task switch leaves no segment to handle it with: catch it in a third task, which
 * gets the error code into ECX. */
#define T3 (TEST_SEL + 0x28)
static struct tss third __attribute__((aligned(128)));
static void catch_by_task(unsigned vector)
{
    memcpy(&third, &other, 104);
    third.cs = KCS, third.eip = (word)CODE("pop ecx");
    third.ss = third.ds = third.es = KDS, third.ldt = 0;
    third.esp = (word)(other_stack + 2048);
    set_gdt(T3, descriptor((word)&third, 103, 0x89, 0));
    idt[vector] = (struct gate){0, T3, 0, 0x85, 0};
}

static struct regs go(struct regs r, int call, u16 selector)
{
    pointer[0] = 0xdeadbeef;
    pointer[1] = selector;
    r.bx = (word)pointer;
    r.ax = 0x1a, r.cx = 0x1c, r.dx = 0x1d, r.si = 0x15, r.di = 0x1f, r.bp = 0x1b;
    if (call)
        RUN(&r, "call fword ptr [ebx]; nop");
    else
        RUN(&r, "jmp fword ptr [ebx]; nop");
    return r;
}

TEST(jump_loads_the_new_task)
{
    new_task(CODE("nop"));
    struct regs r = go(kernel_regs(), 0, T32);
    DONE(&r);
    EXPECT_EQ(r.ax, 0xa0a0a0a0);
    EXPECT_EQ(r.bx, 0xb0b0b0b0);
    EXPECT_EQ(r.cx, 0xc0c0c0c0);
    EXPECT_EQ(r.dx, 0xd0d0d0d0);
    EXPECT_EQ(r.si, 0x51515151);
    EXPECT_EQ(r.di, 0xd1d1d1d1);
    EXPECT_EQ(r.bp, 0xbbbbbbbb);
    EXPECT_EQ(r.sp, other.esp);
    EXPECT_EQ(r.flags & (F_NT | 2), 2);
    /* the old one is saved, and no longer busy; no link */
    EXPECT_EQ(tss.eax, 0x1a);
    EXPECT_EQ(tss.ecx, 0x1c);
    EXPECT_EQ(tss.ebp, 0x1b);
    EXPECT_EQ(tss.eip, r.start + 2);
    EXPECT_EQ(tss.cs & 0xffff, KCS);
    EXPECT_EQ(tss.ss & 0xffff, KDS);
    EXPECT_EQ(BUSY(TSS_SEL), 0);
    EXPECT_EQ(BUSY(T32), 1);
    EXPECT_EQ(other.link, 0);
    u16 tr;
    asm volatile("str %0" : "=r"(tr));
    EXPECT_EQ(tr, T32);
    EXPECT_EQ(read_cr0() & CR0_TS, CR0_TS);
    EXPECT_EQ(read_cr3(), 0); /* without paging, CR3 is not loaded */
}

TEST(call_links_and_iret_returns)
{
    new_task(CODE("pushfd; pop eax; mov edx, 0x77; iretd"));
    struct regs r = go(kernel_regs(), 1, T32);
    DONE(&r);
    EXPECT_EQ(r.ip, r.start + 2 + 1 + 2); /* behind the NOP and INT */
    EXPECT_EQ(r.ax, 0x1a);                /* our registers, from our TSS */
    EXPECT_EQ(r.dx, 0x1d);
    EXPECT_EQ(other.eax & F_NT, F_NT); /* it saw NT */
    EXPECT_EQ(other.edx, 0x77);
    EXPECT_EQ(other.link & 0xffff, TSS_SEL);
    EXPECT_EQ(other.eflags & F_NT, 0); /* saved with NT clear */
    EXPECT_EQ(BUSY(T32), 0);
    EXPECT_EQ(BUSY(TSS_SEL), 1);
    EXPECT_EQ(r.flags & F_NT, 0);
}

TEST(both_busy_while_nested)
{
    new_task(CODE("nop"));
    struct regs r = go(kernel_regs(), 1, T32);
    DONE(&r);
    EXPECT_EQ(BUSY(T32), 1);
    EXPECT_EQ(BUSY(TSS_SEL), 1);
    EXPECT_EQ(r.flags & F_NT, F_NT);
}

TEST(busy_task_is_refused)
{
    struct regs r = go(kernel_regs(), 1, TSS_SEL);
    TRAPPED(&r, V_GP, TSS_SEL, 0);
    r = go(kernel_regs(), 0, TSS_SEL);
    TRAPPED(&r, V_GP, TSS_SEL, 0);
    set_task_gate(TSS_SEL, 0x85);
    r = go(kernel_regs(), 1, GATE);
    TRAPPED(&r, V_GP, TSS_SEL, 0);
}

TEST(descriptor_checks)
{
    new_task(CODE("nop"));
    set_gdt(T32, descriptor((word)&other, 103, 0x09, 0));
    struct regs r = go(kernel_regs(), 0, T32);
    TRAPPED(&r, V_NP, T32, 0);
    set_gdt(T32, descriptor((word)&other, 102, 0x89, 0)); /* limit below 103 */
    r = go(kernel_regs(), 0, T32);
    TRAPPED(&r, V_TS, T32, 0);
    set_gdt(T32, descriptor((word)&other, 103, 0x89, 0)); /* DPL 0 from CPL 3 */
    r = go(user_regs(), 0, T32);
    TRAPPED(&r, V_GP, T32, 0);
    set_gdt(T32, descriptor((word)&other, 103, 0xe9, 0));
    r = go(user_regs(), 0, T32);
    DONE(&r);
}

TEST(task_gate_checks)
{
    new_task(CODE("nop"));
    set_task_gate(T32, 0xe5);
    struct regs r = go(user_regs(), 1, GATE); /* the gate's DPL counts, not the TSS's */
    DONE(&r);
    EXPECT_EQ(BUSY(T32), 1);
}

TEST(task_gate_refusals)
{
    new_task(CODE("nop"));
    set_task_gate(T32, 0x85);
    struct regs r = go(user_regs(), 1, GATE);
    TRAPPED(&r, V_GP, GATE, 0);
    set_task_gate(T32, 0x05);
    r = go(kernel_regs(), 1, GATE);
    TRAPPED(&r, V_NP, GATE, 0);
    set_task_gate(KDS, 0x85);
    r = go(kernel_regs(), 1, GATE);
    TRAPPED(&r, V_GP, KDS, 0);
    set_task_gate(T32 | 4, 0x85); /* in the LDT */
    r = go(kernel_regs(), 1, GATE);
    TRAPPED(&r, V_GP, T32 | 4, 0);
    set_task_gate(T32, 0x85);
    set_gdt(T32, descriptor((word)&other, 103, 0x09, 0));
    r = go(kernel_regs(), 1, GATE);
    TRAPPED(&r, V_NP, T32, 0);
}

TEST(sixteen_bit_tss)
{
    memset(&small, 0, sizeof small);
    u8 *low = (u8 *)0x8000;
    asm("" : "+r"(low));
    /* The upper halves of the registers are undefined, ESP's too: a 16-bit stack until it is loaded. */
    memcpy(low, CODE("mov edx, ss; mov ebp, 0x10; mov ss, ebp; mov esp, 0x9000"), 24);
    small.ip = 0x8000, small.flags = 2, small.sp = 0x9000;
    small.cs = KCS, small.ss = KDS16, small.ds = small.es = KDS;
    small.ax = 0x1616, small.cx = 0xc1c1;
    set_gdt(T16, descriptor((word)&small, 43, 0x81, 0));
    struct regs r = go(kernel_regs(), 1, T16);
    DONE(&r);
    EXPECT_EQ(r.ax & 0xffff, 0x1616);
    EXPECT_EQ(r.cx & 0xffff, 0xc1c1);
    EXPECT_EQ(r.dx & 0xffff, KDS16);
    EXPECT_EQ(r.cs, KCS);
    EXPECT_EQ(r.fs, 0); /* a 16-bit TSS has no FS and GS: they become null */
    EXPECT_EQ(small.link, TSS_SEL);
    EXPECT_EQ(tss.eax, 0x1a);
}

TEST(sixteen_bit_tss_limit)
{
    set_gdt(T16, descriptor((word)&small, 42, 0x81, 0));
    struct regs r = go(kernel_regs(), 0, T16);
    TRAPPED(&r, V_TS, T16, 0);
}

TEST(interrupt_through_task_gate)
{
    new_task(CODE("pop ecx; nop"));
    idt[V_UD] = (struct gate){0, T32, 0, 0x85, 0};
    struct regs u = user_regs();
    u.ax = 0x4242;
    RUN(&u, "nop; ud2");
    DONE(&u);
    EXPECT_EQ(tss.eip, u.start + 1); /* restartable */
    EXPECT_EQ(tss.eax, 0x4242);
    EXPECT_EQ(tss.cs & 0xffff, UCS32);
    EXPECT_EQ(tss.eflags & F_RF, F_RF);
    EXPECT_EQ(u.flags & F_NT, F_NT);
}

TEST(error_code_goes_to_the_new_stack)
{
    new_task(CODE("pop ecx; mov edx, esp"));
    idt[V_GP] = (struct gate){0, T32, 0, 0x85, 0};
    struct regs r = kernel_regs();
    r.ax = 0xfff8;
    RUN(&r, "nop; mov ds, ax");
    DONE(&r);
    EXPECT_EQ(r.cx, 0xfff8);
    EXPECT_EQ(r.dx, other.esp);
    EXPECT_EQ(tss.eip, r.start + 1);
}

TEST(double_fault_by_task_gate)
{
    /* The classic use: #DF on a good stack whatever the old one is. */
    new_task(CODE("pop ecx"));
    idt[V_DF] = (struct gate){0, T32, 0, 0x85, 0};
    idt[V_SS].type = 0x0e;
    set_gdt(TEST_SEL + 0x20, descriptor((word)other_stack, 0xff, 0x93, DB));
    struct regs r = kernel_regs();
    r.ax = TEST_SEL + 0x20;
    RUN(&r, "mov esp, 0x4000; mov ss, ax; push eax");
    DONE(&r);
    EXPECT_EQ(r.cx, 0);
    EXPECT_EQ(tss.esp, 0x4000);
    EXPECT_EQ(tss.ss & 0xffff, TEST_SEL + 0x20);
}

TEST(faults_after_commit_belong_to_the_new_task)
{
    /* A bad selector in the new TSS: #TS with the new task's CS:EIP, old task saved. */
    new_task(CODE("nop"));
    other.ds = UDS & ~3; /* fine for CPL 0 */
    other.es = 0xfff8;   /* beyond the GDT */
    struct regs r = go(kernel_regs(), 0, T32);
    TRAPPED(&r, V_TS, 0xfff8, -1);
    EXPECT_EQ(r.ip, other.eip);
    EXPECT_EQ(r.ax, 0xa0a0a0a0);
    EXPECT_EQ(tss.eax, 0x1a);
    EXPECT_EQ(BUSY(T32), 1);
}

TEST(not_present_segment_in_new_task)
{
    set_gdt(TEST_SEL + 0x20, descriptor(0, 0xfffff, 0x13, 12));
    new_task(CODE("nop"));
    other.gs = TEST_SEL + 0x20;
    struct regs r = go(kernel_regs(), 0, T32);
    TRAPPED(&r, V_NP, TEST_SEL + 0x20, -1);
    EXPECT_EQ(r.ip, other.eip);
}

TEST(bad_cs_in_new_task)
{
    new_task(CODE("nop"));
    other.cs = KDS;
    catch_by_task(V_TS);
    struct regs r = go(kernel_regs(), 0, T32);
    DONE(&r);
    EXPECT_EQ(r.cx, KDS);
    EXPECT_EQ(third.link & 0xffff, T32);
}

TEST(iret_without_a_previous_task)
{
    /* NT set and the link names no busy TSS: #TS(link). */
    new_task(CODE("nop"));
    tss.link = T32; /* available, not busy */
    struct regs r = kernel_regs();
    r.flags |= F_NT;
    RUN(&r, "iretd");
    TRAPPED(&r, V_TS, T32, 0);
}

TEST(debug_trap_bit)
{
    new_task(CODE("nop"));
    other.trap = 1;
    struct regs r = go(kernel_regs(), 0, T32);
    TRAPPED(&r, V_DB, 0, -1);
    EXPECT_EQ(r.ip, other.eip); /* before the first instruction */
    EXPECT_EQ(r.dr6 & 0xe00f, 0x8000); /* BT */
}

TEST(ldt_of_the_new_task)
{
    ldt[1] = descriptor(0, 0xfffff, 0x93, 12);
    new_task(CODE("sldt cx"));
    other.ldt = LDT_SEL;
    other.ds = 0x0c; /* LDT entry 1 */
    struct regs r = go(kernel_regs(), 0, T32);
    DONE(&r);
    EXPECT_EQ(r.cx & 0xffff, LDT_SEL);
    EXPECT_EQ(r.ds, 0x0c);
}

TEST(bad_ldt_in_new_task)
{
    new_task(CODE("nop"));
    other.ldt = KDS; /* no LDT descriptor */
    catch_by_task(V_TS);
    struct regs r = go(kernel_regs(), 0, T32);
    DONE(&r);
    EXPECT_EQ(r.cx, KDS);
    EXPECT_EQ(third.link & 0xffff, T32);
    EXPECT_EQ(other.eax, 0xa0a0a0a0);
    EXPECT_EQ(tss.eax, 0x1a);
}

TEST(cr3_of_the_new_task)
{
    u32 *one = new_page(), *two = new_page();
    for (u32 i = 0; i < 1024; i++)
        one[i] = two[i] = i << 22 | 0x87;
    write_cr4(CR4_PSE);
    write_cr3((word)one);
    write_cr0(read_cr0() | CR0_PG);
    new_task(CODE("mov ecx, cr3"));
    other.cr3 = (word)two;
    struct regs r = go(kernel_regs(), 1, T32);
    DONE(&r);
    EXPECT_EQ(r.cx, (word)two);
    EXPECT_EQ(read_cr3(), (word)two);
}

TEST(debug_registers_lose_local_enables)
{
    new_task(CODE("mov ecx, dr7"));
    write_dr7(0x755); /* LE, GE, L0..L3 */
    struct regs r = go(kernel_regs(), 0, T32);
    DONE(&r);
    EXPECT_EQ(r.cx & 0x3ff, 0x200);
}

TEST(task_in_virtual_8086_mode)
{
    /* A TSS whose EFLAGS has VM set starts a virtual-8086 task. */
    new_task((void *)0x10);
    u8 *low = (u8 *)0x8010;
    asm("" : "+r"(low));
    memcpy(low, "\xb9\x34\x12\xcd\x81", 5); /* mov cx, 0x1234; int 0x81 */
    other.eflags = 2 | F_VM | F_IOPL(3);
    other.cs = 0x800, other.ss = 0x900, other.ds = 0x111, other.es = 0x222, other.fs = 0x333, other.gs = 0x444;
    other.esp = 0x100;
    other.esp0 = tss.esp0, other.ss0 = KDS;
    struct regs r = go(kernel_regs(), 0, T32);
    DONE(&r);
    EXPECT_EQ(r.flags & F_VM, F_VM);
    EXPECT_EQ(r.cs, 0x800);
    EXPECT_EQ(r.cx & 0xffff, 0x1234);
    EXPECT_EQ(r.v_ds & 0xffff, 0x111);
}
