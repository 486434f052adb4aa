//! A client speaks FUSE to a server over a real folder, kindly and otherwise.

use mimeo_share::{Fuse, Tree};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

const ENOENT: i32 = 2;
const EIO: i32 = 5;
const EPERM: i32 = 1;
const EINVAL: i32 = 22;
const EROFS: i32 = 30;
const ENOSYS: i32 = 38;
const ELOOP: i32 = 40;
const ESTALE: i32 = 116;

struct Client(Fuse);

fn d(v: u32) -> Vec<u8> {
    v.to_le_bytes().to_vec()
}
fn q(v: u64) -> Vec<u8> {
    v.to_le_bytes().to_vec()
}
fn z(name: &[u8]) -> Vec<u8> {
    [name, &[0]].concat()
}

impl Client {
    fn new(root: &Path, read_only: bool) -> Self {
        let tree = Tree::open(root, read_only).unwrap();
        let mut c = Self(Fuse::new(tree).unwrap());
        assert_eq!(c.call(3, 1, &[q(0), q(0)]), Err(EIO), "nothing before INIT");
        let init = c.call(26, 0, &[d(7), d(38), d(1 << 20), d(u32::MAX), vec![0; 48]]);
        let init = init.unwrap();
        assert_eq!(init.len(), 64);
        assert_eq!(init[..8], [d(7), d(31)].concat());
        c
    }

    fn raw(&mut self, opcode: u32, node: u64, fields: &[Vec<u8>], room: usize) -> Vec<u8> {
        let body = fields.concat();
        let head = [
            d(40 + body.len() as u32),
            d(opcode),
            q(77),
            q(node),
            vec![0; 16],
        ];
        self.0.handle(&[head.concat(), body].concat(), room)
    }

    /// Sends a request; gives the reply's body, or the errno.
    fn call(&mut self, opcode: u32, node: u64, fields: &[Vec<u8>]) -> Result<Vec<u8>, i32> {
        let r = self.raw(opcode, node, fields, 1 << 20);
        let word = |at: usize| u32::from_le_bytes(r[at..at + 4].try_into().unwrap());
        assert_eq!(word(0) as usize, r.len());
        assert_eq!(r[8..16], q(77));
        match word(4).cast_signed() {
            0 => Ok(r[16..].to_vec()),
            error => Err(-error),
        }
    }

    /// Looks a name up; gives its number.
    fn lookup(&mut self, dir: u64, name: &[u8]) -> Result<u64, i32> {
        let entry = self.call(1, dir, &[z(name)])?;
        assert_eq!(entry.len(), 128);
        Ok(u64::from_le_bytes(entry[..8].try_into().unwrap()))
    }

    /// Opens; gives the handle.
    fn open(&mut self, node: u64, flags: u32) -> Result<u64, i32> {
        let out = self.call(14, node, &[d(flags), d(0)])?;
        Ok(u64::from_le_bytes(out[..8].try_into().unwrap()))
    }

    fn read(&mut self, handle: u64, at: u64, size: u32) -> Result<Vec<u8>, i32> {
        self.call(15, 0, &[q(handle), q(at), d(size), vec![0; 20]])
    }

    fn write(&mut self, handle: u64, at: u64, data: &[u8]) -> Result<Vec<u8>, i32> {
        let size = d(data.len() as u32);
        self.call(16, 0, &[q(handle), q(at), size, vec![0; 20], data.to_vec()])
    }
}

#[test]
fn files_are_made_written_read_and_moved() {
    let dir = tempfile::tempdir().unwrap();
    let mut c = Client::new(dir.path(), false);
    c.call(9, 1, &[d(0o755), d(0), z(b"sub")]).unwrap();
    let sub = c.lookup(1, b"sub").unwrap();
    let made = c
        .call(35, sub, &[d(2), d(0o640), d(0), d(0), z(b"f")])
        .unwrap();
    let handle = u64::from_le_bytes(made[128..136].try_into().unwrap());
    assert_eq!(c.write(handle, 3, b"hello").unwrap(), [d(5), d(0)].concat());
    assert_eq!(c.read(handle, 0, 100).unwrap(), b"\0\0\0hello");
    assert_eq!(fs::read(dir.path().join("sub/f")).unwrap(), b"\0\0\0hello");
    // The folder moves; what is in it is still found by number.
    let f = c.lookup(sub, b"f").unwrap();
    c.call(12, 1, &[q(1), z(b"sub"), z(b"moved")]).unwrap();
    let again = c.open(f, 0).unwrap();
    assert_eq!(c.read(again, 3, 5).unwrap(), b"hello");
    assert_eq!(
        c.call(45, 1, &[q(1), d(2), d(0), z(b"moved"), z(b"x")]),
        Err(EINVAL)
    );
    c.call(18, f, &[q(again), vec![0; 16]]).unwrap();
    assert!(c.read(again, 0, 1).is_err(), "a handle that was released");
    c.call(10, sub, &[z(b"f")]).unwrap();
    assert_eq!(c.lookup(sub, b"f"), Err(ENOENT));
    c.call(11, 1, &[z(b"moved")]).unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_long_folder_is_listed_in_pieces_with_attributes() {
    let dir = tempfile::tempdir().unwrap();
    for i in 0..300 {
        fs::write(dir.path().join(format!("file-{i:03}")), "x").unwrap();
    }
    let mut c = Client::new(dir.path(), false);
    let out = c.call(27, 1, &[d(0), d(0)]).unwrap();
    let handle = u64::from_le_bytes(out[..8].try_into().unwrap());
    let (mut names, mut offset) = (Vec::new(), 0);
    loop {
        let part = c
            .call(44, 1, &[q(handle), q(offset), d(4096), vec![0; 20]])
            .unwrap();
        if part.is_empty() {
            break;
        }
        assert!(part.len() <= 4096);
        let mut rest = &part[..];
        while !rest.is_empty() {
            let node = u64::from_le_bytes(rest[..8].try_into().unwrap());
            let entry = &rest[128..];
            offset = u64::from_le_bytes(entry[8..16].try_into().unwrap());
            let len = u32::from_le_bytes(entry[16..20].try_into().unwrap()) as usize;
            let name = entry[24..24 + len].to_vec();
            assert_eq!(node == 0, name.starts_with(b"."));
            names.push(name);
            rest = &rest[128 + (24 + len).next_multiple_of(8)..];
        }
    }
    assert_eq!(names.len(), 302);
    // More than are held open: the first ones are found again by their names.
    let first = c.lookup(1, b"file-000").unwrap();
    let second = c.lookup(1, b"file-001").unwrap();
    for i in 0..600 {
        let name = format!("more-{i:03}");
        fs::write(dir.path().join(&name), "x").unwrap();
        c.lookup(1, name.as_bytes()).unwrap();
    }
    assert!(c.open(first, 0).is_ok());
    // A name that leads to another file now.
    fs::rename(dir.path().join("more-000"), dir.path().join("file-001")).unwrap();
    assert_eq!(c.open(second, 0), Err(ESTALE));
    // What is forgotten is not known any more.
    c.raw(2, first, &[q(u64::MAX)], 0);
    assert_eq!(c.open(first, 0), Err(ESTALE));
}

#[test]
fn nothing_leads_out() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "the host's").unwrap();
    let dir = tempfile::tempdir().unwrap();
    symlink(outside.path(), dir.path().join("out")).unwrap();
    symlink("/etc/passwd", dir.path().join("passwd")).unwrap();
    fs::create_dir(dir.path().join("d")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        dir.path().join("pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    let mut c = Client::new(dir.path(), false);
    for name in [
        &b".."[..],
        b".",
        b"d/..",
        b"/etc/passwd",
        b"",
        b"out/secret",
    ] {
        assert!(c.lookup(1, name).is_err(), "{name:?}");
        assert!(
            c.call(9, 1, &[d(0o755), d(0), z(name)]).is_err(),
            "{name:?}"
        );
        assert!(
            c.call(12, 1, &[q(1), z(b"d"), z(name)]).is_err(),
            "{name:?}"
        );
    }
    let out = c.lookup(1, b"out").unwrap();
    assert!(c.lookup(out, b"secret").is_err());
    let passwd = c.lookup(1, b"passwd").unwrap();
    assert_eq!(c.open(passwd, 0), Err(ELOOP));
    assert_eq!(c.call(5, passwd, &[]).unwrap(), b"/etc/passwd");
    // CREATE of a name that is a link does not follow it.
    assert_eq!(
        c.call(35, 1, &[d(1), d(0o600), d(0), d(0), z(b"passwd")]),
        Err(ELOOP)
    );
    // Special files are not opened, device nodes are not made.
    let pipe = c.lookup(1, b"pipe").unwrap();
    assert_eq!(c.open(pipe, 0), Err(EPERM));
    assert_eq!(
        c.call(8, 1, &[d(0o20_600), d(0x103), d(0), d(0), z(b"null")]),
        Err(EPERM)
    );
    // A folder that is swapped for a link after it was looked up.
    let inside = c.lookup(1, b"d").unwrap();
    fs::rename(dir.path().join("d"), outside.path().join("d")).unwrap();
    symlink(outside.path(), dir.path().join("d")).unwrap();
    assert!(c.open(inside, 0o200_000).is_err());
}

#[test]
fn a_read_only_share_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("f"), "as it was").unwrap();
    let mut c = Client::new(dir.path(), true);
    let f = c.lookup(1, b"f").unwrap();
    assert_eq!(c.open(f, 1), Err(EROFS));
    let handle = c.open(f, 0).unwrap();
    assert_eq!(c.write(handle, 0, b"x"), Err(EROFS));
    assert_eq!(c.call(10, 1, &[z(b"f")]), Err(EROFS));
    assert_eq!(c.call(9, 1, &[d(0o755), d(0), z(b"new")]), Err(EROFS));
    let truncate = [d(8), d(0), vec![0; 80]];
    assert_eq!(c.call(4, f, &truncate), Err(EROFS));
    assert_eq!(fs::read(dir.path().join("f")).unwrap(), b"as it was");
}

#[test]
fn nonsense_is_answered_with_errors() {
    let dir = tempfile::tempdir().unwrap();
    let mut c = Client::new(dir.path(), false);
    assert!(c.0.handle(b"", 100).is_empty());
    assert!(c.0.handle(&[0xff; 39], 100).is_empty());
    assert!(
        c.raw(3, 1, &[q(0), q(0)], 15).is_empty(),
        "no room for a reply"
    );
    assert_eq!(
        c.raw(3, 1, &[q(0), q(0)], 20).len(),
        16,
        "no room for the attributes"
    );
    assert_eq!(c.call(9999, 1, &[]), Err(ENOSYS));
    assert!(c.call(1, 12345, &[z(b"x")]).is_err());
    assert!(c.call(1, 1, &[b"no end".to_vec()]).is_err());
    assert!(c.write(99, 0, b"x").is_err());
    // A count of names that are not there, and a root that cannot be forgotten.
    c.raw(42, 0, &[d(u32::MAX), d(0), q(1), q(u64::MAX)], 0);
    assert!(c.call(3, 1, &[q(0), q(0)]).is_ok());
}
