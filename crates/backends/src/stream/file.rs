//! A stream that goes into a file and gives no input.

use super::StreamError;
use super::output::Output;
use mimeo_bus::{StreamDevice, StreamHost};
use std::path::Path;
use std::sync::Arc;

/// Writes what the guest sends into a file.
pub struct FileStream {
    out: Output,
}

impl std::fmt::Debug for FileStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FileStream")
    }
}

impl FileStream {
    /// Creates or empties the file at `path`. `on_error` is told of the first failure to write.
    ///
    /// # Errors
    /// [`StreamError::File`].
    pub fn create(
        path: &Path,
        on_error: Box<dyn Fn(&std::io::Error) + Send>,
    ) -> Result<Self, StreamError> {
        std::fs::File::create(path)
            .and_then(|file| Output::new(file, on_error))
            .map(|out| Self { out })
            .map_err(|source| StreamError::File {
                path: path.display().to_string(),
                source,
            })
    }
}

impl StreamHost for FileStream {
    fn write(&self, bytes: &[u8]) -> usize {
        self.out.write(bytes)
    }

    fn input_wanted(&self) {}

    fn connect(&self, device: Arc<dyn StreamDevice>) {
        self.out.connect(device);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_holds_what_was_sent() {
        let path = std::env::temp_dir().join(format!("mimeo-file-{}", std::process::id()));
        let f = FileStream::create(&path, Box::new(|e| panic!("{e}"))).unwrap();
        assert_eq!(f.write(b"hello"), 5);
        drop(f);
        assert_eq!(std::fs::read(&path).unwrap(), b"hello");
        std::fs::remove_file(&path).unwrap();
        let error = FileStream::create(Path::new("/nonexistent/x"), Box::new(|_| {})).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/x"));
    }
}
