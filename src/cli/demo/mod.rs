//! `outpace demo`: sends the same requests to a rate-limited origin directly and through outpace,
//! and compares the results.

mod client;
mod compare;
mod origin;

use std::net::SocketAddr;

use clap::Args;

use super::{Exit, Failure};
use crate::units::Rate;

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  outpace demo\n  outpace demo --origin --rate 5/1s")]
pub(super) struct DemoArgs {
    /// Run only the origin, so that you can send it your own requests
    #[arg(long)]
    origin: bool,
    /// Address on which the origin listens (only with --origin)
    #[arg(
        long,
        default_value = "127.0.0.1:9900",
        value_name = "ADDRESS",
        requires = "origin"
    )]
    listen: SocketAddr,
    /// Rate that the origin allows: "5/1s" means at most 5 requests in any second (only with
    /// --origin)
    #[arg(long, default_value = "5/1s", value_name = "RATE", requires = "origin")]
    rate: Rate,
}

pub(super) fn run(args: &DemoArgs) -> Result<Exit, Failure> {
    super::block_on(async {
        if args.origin {
            origin::stand(args.listen, args.rate).await
        } else {
            compare::run().await
        }
    })
}
