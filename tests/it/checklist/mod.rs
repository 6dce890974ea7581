//! Checklist of a forward proxy as tests. The name of each test begins with its row.

mod exposure;
mod floods;
mod frames;
mod http2;
mod lifecycle;
mod response_bodies;
mod responses;
mod retry_after;
mod seen;
mod strange_origin;
