//! HTTP/1.1 on a socket: heads, and bodies of a known length, in chunks, or to the end of the connection.

use std::io::{Error, ErrorKind, Result};

use httparse::{EMPTY_HEADER, Header, Request, Response, Status};
use tokio::io::AsyncReadExt;
use tokio::net::tcp::OwnedReadHalf;

/// Headers of a message, at most.
const MAX_HEADERS: usize = 64;
/// Bytes of a head, at most.
const MAX_HEAD_BYTES: usize = 64 * 1024;
/// Bytes read at once.
const READ_BYTES: usize = 16 * 1024;

/// The receiving side of a connection.
#[derive(Debug)]
pub struct Reader {
    half: OwnedReadHalf,
    buffer: Vec<u8>,
    /// Bytes of `buffer` that are used up.
    used: usize,
}

/// How much of a body is still to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// So many bytes.
    Bytes(usize),
    /// Chunks; the line with the size of the next one comes now.
    ChunkSize,
    /// So many bytes of a chunk, then the end of its line, then more chunks.
    Chunk(usize),
    /// Trailers and the empty line after the last chunk.
    Trailers,
    /// All until the other side closes.
    UntilClose,
}

/// Head of a request.
#[derive(Debug)]
pub struct RequestHead {
    /// Whether it is a POST; else it counts as a GET.
    pub post: bool,
    /// Path and query.
    pub path: String,
    /// Its body.
    pub left: Left,
    /// The header `x-mock-fault`.
    pub fault: Option<String>,
    /// Whether the client waits for leave to send the body.
    pub expects_continue: bool,
}

/// Head of a response.
#[derive(Debug)]
pub struct ResponseHead {
    /// Its status code.
    pub status: u16,
    /// Its body.
    pub left: Left,
    /// Whether there is a `retry-after` of whole seconds.
    pub retry_after: bool,
    /// Whether the connection can be used again.
    pub keep_alive: bool,
}

impl Reader {
    /// Of a connection from which nothing was read yet.
    #[must_use]
    pub fn new(half: OwnedReadHalf) -> Self {
        Self { half, buffer: Vec::with_capacity(READ_BYTES), used: 0 }
    }

    /// Whether all that was read is used up.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.used == self.buffer.len()
    }

    /// Reads some more. False at the end of the connection. Nothing is lost if this is not waited for to its end.
    pub async fn fill(&mut self) -> Result<bool> {
        if self.used > 0 {
            self.buffer.drain(..self.used);
            self.used = 0;
        }
        self.buffer.reserve(READ_BYTES);
        Ok(self.half.read_buf(&mut self.buffer).await? > 0)
    }

    /// The next request; nothing if the client has closed.
    pub async fn request(&mut self) -> Result<Option<RequestHead>> {
        loop {
            if let Some((head, bytes)) = parse_request(&self.buffer[self.used..])? {
                self.used += bytes;
                return Ok(Some(head));
            }
            let fresh = self.is_empty();
            if self.buffer.len() - self.used > MAX_HEAD_BYTES {
                return Err(invalid("the head is too long"));
            }
            if !self.fill().await? {
                return if fresh { Ok(None) } else { Err(ErrorKind::UnexpectedEof.into()) };
            }
        }
    }

    /// The next response.
    pub async fn response(&mut self) -> Result<ResponseHead> {
        loop {
            if let Some((head, bytes)) = parse_response(&self.buffer[self.used..])? {
                self.used += bytes;
                if head.status >= 200 {
                    return Ok(head);
                }
                continue;
            }
            if !self.fill().await? {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Appends the next bytes of a body to `to`, at least one. False once it is complete.
    pub async fn piece(&mut self, left: &mut Left, to: &mut Vec<u8>) -> Result<bool> {
        let before = to.len();
        loop {
            while self.step(left, to)? {}
            if to.len() > before {
                return Ok(true);
            }
            if *left == Left::Bytes(0) {
                return Ok(false);
            }
            if !self.fill().await? {
                if *left == Left::UntilClose {
                    *left = Left::Bytes(0);
                    return Ok(false);
                }
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Moves on within what is in the buffer. False if that needs more bytes, or nothing is left.
    fn step(&mut self, left: &mut Left, to: &mut Vec<u8>) -> Result<bool> {
        let here = &self.buffer[self.used..];
        let (used, next) = match *left {
            Left::Bytes(count) => {
                let taken = count.min(here.len());
                to.extend_from_slice(&here[..taken]);
                (taken, Left::Bytes(count - taken))
            }
            Left::UntilClose => {
                to.extend_from_slice(here);
                (here.len(), Left::UntilClose)
            }
            Left::ChunkSize => match line(here) {
                None => return Ok(false),
                Some(text) => match chunk_size(text)? {
                    0 => (text.len() + 2, Left::Trailers),
                    size => (text.len() + 2, Left::Chunk(size)),
                },
            },
            Left::Chunk(0) if here.len() < 2 => return Ok(false),
            Left::Chunk(0) => (2, Left::ChunkSize),
            Left::Chunk(count) => {
                let taken = count.min(here.len());
                to.extend_from_slice(&here[..taken]);
                (taken, Left::Chunk(count - taken))
            }
            Left::Trailers => match line(here) {
                None => return Ok(false),
                Some([]) => (2, Left::Bytes(0)),
                Some(text) => (text.len() + 2, Left::Trailers),
            },
        };
        self.used += used;
        *left = next;
        Ok(used > 0)
    }
}

/// The first line without its end, if it is all there.
fn line(bytes: &[u8]) -> Option<&[u8]> {
    bytes.windows(2).position(|pair| pair == b"\r\n").map(|end| &bytes[..end])
}

fn chunk_size(text: &[u8]) -> Result<usize> {
    let digits = text.split(|&byte| byte == b';').next().unwrap_or_default();
    let digits = std::str::from_utf8(digits).map_err(|_| invalid("a chunk size is not text"))?;
    usize::from_str_radix(digits.trim(), 16).map_err(|_| invalid("a chunk size is not a number"))
}

fn invalid(what: &'static str) -> Error {
    Error::new(ErrorKind::InvalidData, what)
}

fn find<'a>(headers: &'a [Header<'_>], name: &str) -> Option<&'a str> {
    let header = headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
    std::str::from_utf8(header.value).ok().map(str::trim)
}

fn body(headers: &[Header<'_>], otherwise: Left) -> Result<Left> {
    if find(headers, "transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
        return Ok(Left::ChunkSize);
    }
    match find(headers, "content-length") {
        Some(text) => Ok(Left::Bytes(text.parse().map_err(|_| invalid("content-length is not a number"))?)),
        None => Ok(otherwise),
    }
}

fn parse_request(bytes: &[u8]) -> Result<Option<(RequestHead, usize)>> {
    let mut headers = [EMPTY_HEADER; MAX_HEADERS];
    let mut request = Request::new(&mut headers);
    let status = request.parse(bytes).map_err(|error| Error::new(ErrorKind::InvalidData, error))?;
    let Status::Complete(length) = status else { return Ok(None) };
    let headers = &*request.headers;
    let head = RequestHead {
        post: request.method == Some("POST"),
        path: request.path.unwrap_or("/").to_owned(),
        left: body(headers, Left::Bytes(0))?,
        fault: find(headers, "x-mock-fault").map(str::to_owned),
        expects_continue: find(headers, "expect").is_some(),
    };
    Ok(Some((head, length)))
}

fn parse_response(bytes: &[u8]) -> Result<Option<(ResponseHead, usize)>> {
    let mut headers = [EMPTY_HEADER; MAX_HEADERS];
    let mut response = Response::new(&mut headers);
    let status = response.parse(bytes).map_err(|error| Error::new(ErrorKind::InvalidData, error))?;
    let Status::Complete(length) = status else { return Ok(None) };
    let headers = &*response.headers;
    let code = response.code.unwrap_or(0);
    let bodiless = code < 200 || code == 204 || code == 304;
    let head = ResponseHead {
        status: code,
        left: if bodiless { Left::Bytes(0) } else { body(headers, Left::UntilClose)? },
        retry_after: find(headers, "retry-after").is_some_and(|value| value.parse::<u64>().is_ok()),
        keep_alive: !find(headers, "connection").is_some_and(|value| value.eq_ignore_ascii_case("close")),
    };
    Ok(Some((head, length)))
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// A reader of a connection whose other side sends `pieces` one by one and closes.
    async fn reader(pieces: &'static [&'static str]) -> Reader {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            for piece in pieces {
                stream.write_all(piece.as_bytes()).await.unwrap();
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
        });
        Reader::new(listener.accept().await.unwrap().0.into_split().0)
    }

    async fn body_of(reader: &mut Reader, mut left: Left) -> Result<String> {
        let mut body = Vec::new();
        while reader.piece(&mut left, &mut body).await? {}
        Ok(String::from_utf8(body).unwrap())
    }

    #[tokio::test]
    async fn chunks_are_put_together_wherever_they_are_cut() {
        let pieces = &[
            "HTTP/1.1 200 OK\r\ntransfer-",
            "encoding: chunked\r\n\r\n5\r",
            "\nhel",
            "lo\r\n1;x=y\r\n!\r\n0\r",
            "\nx: y\r\n\r\n",
            "HTTP/1.1 429 No\r\nretry-after: 3\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno",
        ];
        let mut reader = reader(pieces).await;
        let head = reader.response().await.unwrap();
        assert_eq!((head.status, head.left, head.keep_alive), (200, Left::ChunkSize, true));
        assert_eq!(body_of(&mut reader, head.left).await.unwrap(), "hello!");
        let head = reader.response().await.unwrap();
        assert_eq!((head.status, head.retry_after, head.keep_alive), (429, true, false));
        assert_eq!(body_of(&mut reader, head.left).await.unwrap(), "no");
    }

    #[tokio::test]
    async fn a_body_that_is_cut_off_is_an_error_unless_the_end_of_the_connection_is_its_end() {
        let mut cut = reader(&["HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhel"]).await;
        let head = cut.response().await.unwrap();
        assert!(body_of(&mut cut, head.left).await.is_err());
        let mut whole = reader(&["HTTP/1.1 200 OK\r\n\r\nhel"]).await;
        let head = whole.response().await.unwrap();
        assert_eq!(body_of(&mut whole, head.left).await.unwrap(), "hel");
    }

    #[tokio::test]
    async fn requests_follow_each_other_on_one_connection() {
        let mut reader = reader(&[
            "POST /a HTTP/1.1\r\nX-Mock-Fault: hang\r\ncontent-length: 1\r\n\r\nxGET /b HTTP/1.1\r\n\r\n",
        ])
        .await;
        let head = reader.request().await.unwrap().unwrap();
        assert_eq!((head.post, head.path.as_str(), head.fault.as_deref()), (true, "/a", Some("hang")));
        assert_eq!(body_of(&mut reader, head.left).await.unwrap(), "x");
        assert_eq!(reader.request().await.unwrap().unwrap().path, "/b");
        assert!(reader.request().await.unwrap().is_none());
    }
}
