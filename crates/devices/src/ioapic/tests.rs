use super::*;

#[derive(Default)]
struct Log {
    sent: Mutex<Vec<Message>>,
    refuse: Mutex<bool>,
}

impl MessageSink for Log {
    fn send_message(&self, message: &Message) -> bool {
        self.sent.lock().unwrap().push(*message);
        !*self.refuse.lock().unwrap()
    }
}

impl Log {
    fn take(&self) -> Vec<u8> {
        let sent = std::mem::take(&mut *self.sent.lock().unwrap());
        sent.iter().map(|m| m.vector).collect()
    }
}

fn set(io: &mut Ioapic, reg: u8, value: u32) {
    io.mmio_write(0, 4, reg.into());
    io.mmio_write(0x10, 4, value.into());
}

fn get(io: &mut Ioapic, reg: u8) -> u32 {
    io.mmio_write(0, 4, reg.into());
    io.mmio_read(0x10, 4) as u32
}

fn fresh() -> (Ioapic, Arc<Log>) {
    let log = Arc::new(Log::default());
    (Ioapic::new(log.clone()), log)
}

#[test]
fn identification() {
    let (mut io, _) = fresh();
    assert_eq!(get(&mut io, 1), 0x0017_0020);
    set(&mut io, 0, 0xff00_0000);
    assert_eq!(get(&mut io, 0), 0x0f00_0000);
    assert_eq!(get(&mut io, 0x10), 0x1_0000);
    assert_eq!(get(&mut io, 0x40), 0);
}

#[test]
fn edges_are_sent_once_and_lost_while_masked() {
    let (mut io, log) = fresh();
    io.set_line(4, true);
    assert!(log.take().is_empty());
    set(&mut io, 0x18, 0x34);
    assert!(log.take().is_empty());
    io.set_line(4, true);
    assert!(log.take().is_empty());
    io.set_line(4, false);
    io.set_line(4, true);
    assert_eq!(log.take(), [0x34]);
}

#[test]
fn a_level_is_sent_again_after_its_eoi_while_asserted() {
    let (mut io, log) = fresh();
    set(&mut io, 0x2b, 0x0300_0000);
    set(&mut io, 0x2a, 0x8051);
    io.set_line(13, true);
    let sent = log.sent.lock().unwrap()[0];
    assert_eq!((sent.to, sent.level), (Destination::Physical(3), true));
    assert_eq!(log.take(), [0x51]);
    assert_eq!(get(&mut io, 0x2a), 0xc051);
    io.set_line(13, false);
    io.set_line(13, true);
    assert!(log.take().is_empty());
    io.end_of_interrupt(0x50);
    assert!(log.take().is_empty());
    io.mmio_write(0x40, 4, 0x51);
    assert_eq!(log.take(), [0x51]);
    io.set_line(13, false);
    io.end_of_interrupt(0x51);
    assert!(log.take().is_empty());
    assert_eq!(get(&mut io, 0x2a), 0x8051);
}

#[test]
fn unmasking_an_asserted_level_sends_and_becoming_edge_clears_remote_irr() {
    let (mut io, log) = fresh();
    io.set_line(9, true);
    set(&mut io, 0x22, 0x1_8041);
    assert!(log.take().is_empty());
    set(&mut io, 0x22, 0x8041);
    assert_eq!(log.take(), [0x41]);
    // The way software without an EOI register ends a level interrupt.
    set(&mut io, 0x22, 0x1_0041);
    assert_eq!(get(&mut io, 0x22), 0x1_0041);
    set(&mut io, 0x22, 0x8041);
    assert_eq!(log.take(), [0x41]);
}

#[test]
fn what_no_apic_accepts_stays_pending() {
    let (mut io, log) = fresh();
    *log.refuse.lock().unwrap() = true;
    set(&mut io, 0x22, 0x8041);
    io.set_line(9, true);
    assert_eq!(get(&mut io, 0x22), 0x8041);
    *log.refuse.lock().unwrap() = false;
    log.take();
    set(&mut io, 0x23, 0x0100_0000);
    assert_eq!(log.take(), [0x41]);
}

#[test]
fn nmi_and_extint_are_edges() {
    let (mut io, log) = fresh();
    set(&mut io, 0x10, 0x8700);
    io.set_line(0, true);
    set(&mut io, 0x12, 0x8400);
    io.set_line(1, true);
    let sent: Vec<_> = log
        .sent
        .lock()
        .unwrap()
        .iter()
        .map(|m| (m.delivery, m.level))
        .collect();
    assert_eq!(sent, [(Delivery::ExtInt, false), (Delivery::Nmi, false)]);
    assert_eq!(get(&mut io, 0x12) & 0x4000, 0);
}
