//! Writing traces: whole or not at all.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use tempfile::NamedTempFile;

use super::parse::to_value;
use super::{TraceError, TraceRecord};

enum Sink {
    Plain(BufWriter<NamedTempFile>),
    Gzip(GzEncoder<BufWriter<NamedTempFile>>),
}

/// Writes a trace to a temporary file beside its path; [`TraceWriter::finish`] renames it into place, so
/// a reader never sees half a trace. A path that ends in `.gz` is compressed.
pub struct TraceWriter {
    path: PathBuf,
    sink: Sink,
}

impl TraceWriter {
    /// Opens the temporary file.
    ///
    /// # Errors
    /// [`TraceError::Io`] where the folder cannot be written.
    pub fn create(path: &Path) -> Result<Self, TraceError> {
        let temporary =
            temporary_beside(path).map_err(|source| TraceError::Io { path: path.to_owned(), source })?;
        let plain = BufWriter::new(temporary);
        let gzip = path.extension().is_some_and(|extension| extension == "gz");
        let sink =
            if gzip { Sink::Gzip(GzEncoder::new(plain, Compression::best())) } else { Sink::Plain(plain) };
        Ok(Self { path: path.to_owned(), sink })
    }

    /// Appends one record as one line.
    ///
    /// # Errors
    /// [`TraceError::Io`].
    pub fn write(&mut self, record: &TraceRecord) -> Result<(), TraceError> {
        let mut line = to_value(record).to_string();
        line.push('\n');
        let written = match &mut self.sink {
            Sink::Plain(sink) => sink.write_all(line.as_bytes()),
            Sink::Gzip(sink) => sink.write_all(line.as_bytes()),
        };
        written.map_err(|source| self.io(source))
    }

    /// Puts the trace in its place.
    ///
    /// # Errors
    /// [`TraceError::Io`]; what stood at the path before is then still there.
    pub fn finish(self) -> Result<(), TraceError> {
        let Self { path, sink } = self;
        let io = |source| TraceError::Io { path: path.clone(), source };
        let plain = match sink {
            Sink::Plain(plain) => plain,
            Sink::Gzip(gzip) => gzip.finish().map_err(io)?,
        };
        let temporary = plain.into_inner().map_err(|error| io(error.into_error()))?;
        put_in_place(temporary, &path).map_err(io)
    }

    fn io(&self, source: std::io::Error) -> TraceError {
        TraceError::Io { path: self.path.clone(), source }
    }
}

/// Writes a whole trace; see [`TraceWriter`].
///
/// # Errors
/// [`TraceError::Io`].
pub fn write_trace(path: &Path, records: &[TraceRecord]) -> Result<(), TraceError> {
    let mut writer = TraceWriter::create(path)?;
    for record in records {
        writer.write(record)?;
    }
    writer.finish()
}

/// Writes a file whole or not at all: into a temporary file beside it, which is then renamed.
///
/// # Errors
/// Whatever the file system says; what was at `path` is then still there.
pub fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut temporary = temporary_beside(path)?;
    temporary.write_all(bytes)?;
    put_in_place(temporary, path)
}

/// Whether [`write_whole`], a [`TraceWriter`] or a ranker could write to `path`: a temporary file beside it is made and
/// removed again. What is at `path` is not touched, and nothing is made there.
///
/// # Errors
/// Why not; the folder is named where it does not exist.
pub fn check_writable(path: &Path) -> std::io::Result<()> {
    let folder = folder_of(path);
    if !folder.is_dir() {
        let message = format!("there is no folder {}", folder.display());
        return Err(std::io::Error::new(std::io::ErrorKind::NotFound, message));
    }
    temporary_beside(path).map(drop)
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A temporary file in the folder of `path`, so that a rename stays on one file system.
fn temporary_beside(path: &Path) -> std::io::Result<NamedTempFile> {
    NamedTempFile::new_in(folder_of(path))
}

/// Syncs a temporary file and renames it over `path`, readable as an ordinary new file is.
fn put_in_place(temporary: NamedTempFile, path: &Path) -> std::io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        temporary.as_file().set_permissions(std::fs::Permissions::from_mode(0o644))?;
    }
    temporary.as_file().sync_all()?;
    temporary.persist(path).map_err(|error| error.error)?;
    Ok(())
}
