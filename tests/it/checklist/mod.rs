//! Checklist of a forward proxy as tests. The name of each test begins with its row.

mod response_bodies;
mod responses;
mod strange_origin;
