//! Reading of a request's body for the values on which its scope depends.

use std::task::{Context, Poll, ready};

use super::spill::FileRead;
use crate::bounds::BODY_BLOCK;
use crate::policy::RequestJson;

/// One read of a buffered body, which passes its bytes to the reader of JSON values.
#[derive(Debug)]
pub(super) struct BodyScan {
    pub(super) json: RequestJson,
    offset: u64,
    reading: Option<FileRead>,
}

/// Blocks of a body that are read without a pause, so that one long body does not keep a thread.
const BLOCKS_AT_ONCE: usize = 16;

impl BodyScan {
    pub(super) const fn new(json: RequestJson) -> Self {
        Self {
            json,
            offset: 0,
            reading: None,
        }
    }
}

impl super::body::HeldBody {
    /// Passes the body to `scan` up to its end, reading ahead as far as it can be buffered. Returns
    /// without the end if the rest of the body cannot be buffered, or the client is gone.
    pub(super) fn poll_scan(&mut self, scan: &mut BodyScan, cx: &mut Context<'_>) -> Poll<()> {
        for _block in 0..BLOCKS_AT_ONCE {
            if scan.json.has_stopped() {
                scan.json.finish();
                return Poll::Ready(());
            }
            match ready!(self.poll_buffered(scan.offset, &mut scan.reading, cx)) {
                Some(Ok(bytes)) => {
                    let bytes = bytes.get(..BODY_BLOCK).unwrap_or(&bytes);
                    scan.json.push(bytes);
                    scan.offset += bytes.len() as u64;
                }
                Some(Err(_unreadable)) => return Poll::Ready(()),
                None if self.has_ended() => {
                    scan.json.finish();
                    return Poll::Ready(());
                }
                None if !self.may_fill() => return Poll::Ready(()),
                None => ready!(self.poll_fill(cx)),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}
