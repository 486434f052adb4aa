//! Making, describing and converting image files (`mimeo disk`).

use super::layered::access;
use super::open::OpenImage;
use super::{DiskError, DiskFormat};
use imago::file::File as Storage;
use imago::qcow2::Qcow2;
use imago::storage::StorageOpenOptions;
use imago::{FormatAccess, FormatCreateBuilder};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// Bytes that a conversion moves at a time.
const CHUNK: u64 = 1 << 20;

/// What an image is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageInfo {
    /// Its format.
    pub format: DiskFormat,
    /// Bytes that a guest sees.
    pub size: u64,
    /// Bytes that the file takes on its file system.
    pub allocated: u64,
    /// The backing file as the image names it, and its format if it says so.
    pub backing: Option<(String, Option<String>)>,
}

/// Describes the image at `path`. Its backing file need not be there.
///
/// # Errors
/// [`DiskError`].
pub fn image_info(path: &Path, format: Option<DiskFormat>) -> Result<ImageInfo, DiskError> {
    use std::os::unix::fs::MetadataExt;
    let failed = |e| DiskError::open(path, e);
    let image = OpenImage::open(path, false)?;
    let format = image.format(format)?;
    let allocated = image.file.metadata().map_err(failed)?.blocks() * 512;
    let mut info = ImageInfo {
        format,
        size: image.len,
        allocated,
        backing: None,
    };
    if format == DiskFormat::Qcow2 {
        let storage = image.into_storage(false).map_err(failed)?;
        let qcow2 = Qcow2::<Storage>::open_image(storage, false).map_err(failed)?;
        let backing = qcow2.implicit_backing_file().cloned();
        info.backing = backing.map(|b| (b, qcow2.implicit_backing_format().cloned()));
        info.size = FormatAccess::new(qcow2).size();
    }
    Ok(info)
}

fn create_file(path: &Path) -> Result<File, DiskError> {
    let mut options = File::options();
    options.read(true).write(true).create_new(true);
    options.open(path).map_err(|e| match e.kind() {
        io::ErrorKind::AlreadyExists => DiskError::Exists(path.display().to_string()),
        _ => DiskError::open(path, e),
    })
}

/// Makes an image of `size` bytes (the backing file's size when none is given) at `path`, which must
/// not exist. Nothing is left behind when it fails.
///
/// # Errors
/// [`DiskError`].
pub fn create_image(
    path: &Path,
    format: DiskFormat,
    size: Option<u64>,
    backing: Option<(&Path, Option<DiskFormat>)>,
) -> Result<(), DiskError> {
    let shown = || path.display().to_string();
    let mut size = size;
    let mut reference = None;
    if let Some((file, format_of_backing)) = backing {
        if format == DiskFormat::Raw {
            return Err(DiskError::RawBacking(shown()));
        }
        let found = backing_path(path, file);
        let info = image_info(&found, format_of_backing)?;
        size = size.or(Some(info.size));
        reference = Some((file.display().to_string(), info.format.to_string()));
    }
    let size = size.ok_or_else(|| DiskError::NoSize(shown()))?;
    if size == 0 || size % 512 != 0 {
        return Err(DiskError::Length {
            path: shown(),
            len: size,
        });
    }
    let file = create_file(path)?;
    let made = match format {
        DiskFormat::Raw => file.set_len(size),
        DiskFormat::Qcow2 => create_qcow2(file, size, reference),
    };
    made.map_err(|e| {
        // It is ours: made a moment ago.
        let _ = std::fs::remove_file(path);
        DiskError::open(path, e)
    })
}

/// A backing file's name is meant from the folder of the image that names it.
fn backing_path(image: &Path, backing: &Path) -> PathBuf {
    image
        .parent()
        .map_or_else(|| backing.to_owned(), |dir| dir.join(backing))
}

fn create_qcow2(file: File, size: u64, backing: Option<(String, String)>) -> io::Result<()> {
    let storage = Storage::from_open_file(file, StorageOpenOptions::new().write(true))?;
    let mut new = Qcow2::<Storage>::create_builder(storage).size(size);
    if let Some((file, format)) = backing {
        new = new.backing(file, format);
    }
    new.create()
}

/// Copies the contents of the image at `from` into a new one at `to` without a backing file; zeroes
/// take no room.
///
/// # Errors
/// [`DiskError`]; nothing is left behind.
pub fn convert_image(
    (from, from_format): (&Path, Option<DiskFormat>),
    (to, format): (&Path, DiskFormat),
) -> Result<(), DiskError> {
    let image = OpenImage::open(from, false)?;
    let from_format = image.format(from_format)?;
    let source = access(image, from_format, false).map_err(|e| DiskError::open(from, e))?;
    create_image(to, format, Some(source.size()), None)?;
    let copied = OpenImage::open(to, true).and_then(|image| {
        let failed = |e| DiskError::open(to, e);
        let target = access(image, format, true).map_err(failed)?;
        copy(&source, &target).map_err(failed)
    });
    if copied.is_err() {
        let _ = std::fs::remove_file(to);
    }
    copied
}

fn copy(source: &FormatAccess<Storage>, target: &FormatAccess<Storage>) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK as usize];
    let mut at = 0;
    while at < source.size() {
        // At most CHUNK.
        let n = CHUNK.min(source.size() - at) as usize;
        source.read(&mut buffer[..n], at)?;
        for (i, part) in buffer[..n].chunks(64 << 10).enumerate() {
            if part.iter().any(|&b| b != 0) {
                target.write(part, at + (i as u64) * (64 << 10))?;
            }
        }
        at += n as u64;
    }
    target.flush()?;
    target.sync()
}

#[cfg(test)]
mod tests {
    use super::super::testing::Image;
    use super::*;

    #[test]
    fn images_are_made_and_converted() {
        let raw = Image::new("convert", 3 << 20);
        let qcow2 = Image::absent("convert.qcow2");
        convert_image((&raw.0, None), (&qcow2.0, DiskFormat::Qcow2)).unwrap();
        let info = image_info(&qcow2.0, None).unwrap();
        assert_eq!((info.size, info.backing), (3 << 20, None));
        let back = Image::absent("back.img");
        convert_image((&qcow2.0, None), (&back.0, DiskFormat::Raw)).unwrap();
        assert!(std::fs::read(&raw.0).unwrap() == std::fs::read(&back.0).unwrap());
        let again = convert_image((&raw.0, None), (&back.0, DiskFormat::Raw));
        assert!(matches!(again, Err(DiskError::Exists(_))));
    }

    #[test]
    fn what_makes_no_sense_is_refused_and_leaves_nothing() {
        let new = Image::absent("new.qcow2");
        let make = |format, size, backing| create_image(&new.0, format, size, backing);
        let none = Path::new("/nonexistent/base");
        assert!(matches!(
            make(DiskFormat::Qcow2, None, None),
            Err(DiskError::NoSize(_))
        ));
        assert!(make(DiskFormat::Qcow2, Some(1000), None).is_err());
        assert!(make(DiskFormat::Qcow2, None, Some((none, None))).is_err());
        assert!(make(DiskFormat::Raw, None, Some((none, None))).is_err());
        assert!(!new.0.exists());
    }
}
