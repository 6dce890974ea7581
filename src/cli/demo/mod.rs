//! `outpace demo`: the same requests to a limited origin, directly and through outpace, side by side.

mod compare;
mod origin;

use std::net::SocketAddr;

use clap::Args;

use super::Exit;
use crate::units::Rate;

#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// Run the limited origin alone; point traffic at it directly, then through outpace
    #[arg(long)]
    origin: bool,
    /// Where it listens
    #[arg(
        long,
        default_value = "127.0.0.1:9900",
        value_name = "ADDRESS",
        requires = "origin"
    )]
    listen: SocketAddr,
    /// What it allows, counted over every window of that length
    #[arg(long, default_value = "5/1s", value_name = "RATE", requires = "origin")]
    rate: Rate,
}

pub(super) fn run(args: &DemoArgs) -> Exit {
    super::block_on(async {
        if args.origin {
            origin::stand(args.listen, args.rate).await
        } else {
            compare::run().await
        }
    })
}
