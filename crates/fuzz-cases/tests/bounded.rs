//! A fixed number of pseudo-random inputs for each fuzz target, so that every test run does a little of
//! what a fuzzer does for hours. `MIMEO_FUZZ_CASES` asks for more.

fn cases(default: u64) -> u64 {
    let asked = std::env::var("MIMEO_FUZZ_CASES").ok();
    asked.and_then(|n| n.parse().ok()).unwrap_or(default)
}

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn bytes(&mut self, max: u64) -> Vec<u8> {
        let len = self.next() % max;
        (0..len).map(|_| (self.next() >> 32) as u8).collect()
    }

    /// Changes a few bytes, and now and then the length.
    fn mutate(&mut self, data: &mut Vec<u8>) {
        for _ in 0..=self.next() % 8 {
            let at = self.next() as usize % data.len();
            data[at] = match self.next() % 4 {
                0 => 0,
                1 => 0xff,
                _ => self.next() as u8,
            };
        }
        if self.next() % 8 == 0 {
            data.truncate(self.next() as usize % data.len() + 1);
        }
    }
}

#[test]
fn rings_of_a_network_card_of_any_bytes() {
    let mut r = Rng(0x0123_4567_89ab_cdef);
    for _ in 0..cases(600) {
        mimeo_fuzz_cases::net_card(&r.bytes(2000));
    }
}

#[test]
fn frames_of_any_bytes() {
    let mut r = Rng(0x1357_9bdf_0246_8ace);
    for _ in 0..cases(600) {
        mimeo_fuzz_cases::net_frames(&r.bytes(2000));
    }
}

#[test]
fn guest_code_of_any_bytes() {
    let mut r = Rng(0x9e37_79b9_7f4a_7c15);
    for _ in 0..cases(800) {
        mimeo_fuzz_cases::guest_code(&r.bytes(700));
    }
}

/// The smallest ELF with one loadable segment: `bits` is 32 or 64.
fn elf(bits: u8) -> Vec<u8> {
    let mut e = vec![0x7f, b'E', b'L', b'F', if bits == 64 { 2 } else { 1 }, 1, 1];
    e.resize(16, 0);
    e.extend([2, 0, if bits == 64 { 62 } else { 3 }, 0, 1, 0, 0, 0]);
    let word = |e: &mut Vec<u8>, v: u64| e.extend(&v.to_le_bytes()[..usize::from(bits / 8)]);
    word(&mut e, 0x10_0000);
    word(&mut e, if bits == 64 { 64 } else { 52 });
    word(&mut e, 0);
    e.extend([0; 4]);
    let (header, entry) = if bits == 64 { (64u16, 56u16) } else { (52, 32) };
    for v in [header, entry, 1, 0, 0, 0] {
        e.extend(v.to_le_bytes());
    }
    e.extend(1u32.to_le_bytes());
    if bits == 64 {
        e.extend(5u32.to_le_bytes());
        for v in [0x200u64, 0x10_0000, 0x10_0000, 0x100, 0x1000, 0x1000] {
            e.extend(v.to_le_bytes());
        }
    } else {
        for v in [0x200u32, 0x10_0000, 0x10_0000, 0x100, 0x1000, 5, 0x1000] {
            e.extend(v.to_le_bytes());
        }
    }
    e.resize(0x200, 0);
    // A Multiboot header in the segment: magic, flags, checksum.
    e.extend(0x1bad_b002u32.to_le_bytes());
    e.extend(0u32.to_le_bytes());
    e.extend(0x1bad_b002u32.wrapping_neg().to_le_bytes());
    e.resize(0x300, 0x90);
    e
}

/// A Linux boot sector with the fields of a 64-bit bzImage.
fn bzimage() -> Vec<u8> {
    let mut k = vec![0u8; 0x1000];
    k[0x1f1] = 1; // set-up sectors
    k[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    k[0x200..0x202].copy_from_slice(&[0xeb, 0x66]);
    k[0x202..0x206].copy_from_slice(b"HdrS");
    k[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
    k[0x211] = 1; // loaded high
    k[0x214..0x218].copy_from_slice(&0x10_0000u32.to_le_bytes());
    k[0x22c..0x230].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
    k[0x230..0x234].copy_from_slice(&0x1000u32.to_le_bytes());
    k[0x234] = 1; // relocatable
    k[0x236] = 1; // 64-bit entry
    k[0x238..0x23c].copy_from_slice(&2047u32.to_le_bytes());
    k[0x258..0x260].copy_from_slice(&0x10_0000u64.to_le_bytes());
    k[0x260..0x264].copy_from_slice(&0x4000u32.to_le_bytes());
    k
}

#[test]
fn payloads_of_any_bytes() {
    let mut r = Rng(0x0123_4567_89ab_cdef);
    let seeds = [elf(64), elf(32), bzimage()];
    for seed in &seeds {
        mimeo_fuzz_cases::payload(seed);
    }
    for n in 0..cases(800) {
        let mut data = seeds[n as usize % seeds.len()].clone();
        r.mutate(&mut data);
        mimeo_fuzz_cases::payload(&data);
    }
}

#[test]
fn replay_logs_of_any_bytes() {
    let mut r = Rng(0xfeed_face_cafe_beef);
    for _ in 0..cases(800) {
        let mut data = b"MIMEOLOG\x02\0\0\0".to_vec();
        for _ in 0..r.next() % 20 {
            let frame = r.bytes(40);
            data.extend((frame.len() as u32).to_le_bytes());
            data.extend(frame);
        }
        r.mutate(&mut data);
        mimeo_fuzz_cases::replay_log(&data);
    }
}

#[test]
fn virtio_drivers_of_any_kind() {
    let mut r = Rng(0x5eed_5eed_1234_5678);
    for n in 0..cases(1500) {
        let mut data = r.bytes(1500);
        data.insert(0, n as u8);
        mimeo_fuzz_cases::virtio(&data);
    }
}

#[test]
fn clients_of_shared_folders_of_any_kind() {
    let mut r = Rng(0xabcd_ef01_2345_6789);
    for n in 0..cases(300) {
        let mut data = vec![n as u8];
        for _ in 0..r.next() % 60 {
            // Mostly requests that exist, about nodes and handles that may.
            let (kind, node) = (r.next() % 130, r.next() % 4);
            let mut body = r.bytes(80);
            for b in body.iter_mut().step_by(2) {
                *b %= 4;
            }
            data.extend([kind as u8, node as u8, body.len() as u8]);
            data.extend(&body);
            data.push(r.next() as u8);
        }
        mimeo_fuzz_cases::share(&data);
    }
}
