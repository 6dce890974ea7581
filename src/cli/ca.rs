//! `outpace ca`: describes the CA, and replaces it in steps (`outpace ca rotate`).

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Value, json};

use super::client::{AdminArgs, HERE, Instance, config_or_here};
use super::{Exit, Failure, block_on, print};
use crate::app::{StartError, Trust, ca_names, serving};
use crate::clock::Clock;
use crate::intercept::{CaError, CaRotation, CertificateAuthority};

#[derive(Debug, Args)]
pub(super) struct CaArgs {
    /// Configuration file (default: ./outpace.yaml, or that of the user, or else the built-in defaults)
    #[arg(long, short, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    what: Option<CaCommand>,
}

#[derive(Debug, Subcommand)]
enum CaCommand {
    /// Make the next CA and let clients trust it beside the present one. The present CA signs until
    /// `--finish`
    Rotate {
        /// Let the next CA sign, and remove the previous CA from the files for clients
        #[arg(long)]
        finish: bool,
        /// Remove the next CA and keep the present one
        #[arg(long, conflicts_with = "finish")]
        abort: bool,
    },
}

pub(super) fn run(args: &CaArgs) -> Result<Exit, Failure> {
    let config = config_or_here(args.config.as_deref());
    let config = config.as_deref();
    let trust = Trust::load_even_expired(config)?;
    match args.what {
        None => Ok(print(&describe(&trust))),
        Some(CaCommand::Rotate { finish, abort }) => {
            block_on(rotate(config, &trust, finish, abort))
        }
    }
}

fn describe(trust: &Trust) -> String {
    let about = trust.ca.describe();
    let mut text = format!(
        "certificate  {}\nkey          {}\nbundle       {}\nsubject      {}\nsha256       {}\nvalid until  {}\nsigns for    {}\n",
        trust.cert.display(),
        trust.key.display(),
        trust.bundle.display(),
        about.subject,
        about.fingerprint,
        humantime::format_rfc3339_seconds(about.not_after),
        about.names,
    );
    if about.further > 0 {
        let further = about.further;
        text.push_str(&format!("also trusted {further} further certificates\n"));
    }
    let now = Clock::system().wall();
    for problem in trust.ca.findings(&trust.config().policy, now) {
        text.push_str(&format!("warning: {problem}\n"));
    }
    text
}

async fn rotate(
    config: Option<&Path>,
    trust: &Trust,
    finish: bool,
    abort: bool,
) -> Result<Exit, Failure> {
    let failed = |error: CaError| Failure::from(StartError::Ca(error));
    let settings = &trust.config().settings;
    let rotation = CaRotation::open(&settings.ca).map_err(failed)?;
    let now = Clock::system().wall();
    let text = if abort {
        rotation.abort().map_err(failed)?;
        "the rotation was given up; the present CA stays, and the next one was removed\n".to_owned()
    } else if finish {
        let next = rotation.switch(now).map_err(failed)?.describe();
        // Clients must find both certificates while the running outpace may still use the old one.
        confirm(config, trust, &next.fingerprint).await?;
        rotation.retire().map_err(failed)?;
        "the new CA signs now, and the files for clients hold its certificate alone\n".to_owned()
    } else {
        let names = ca_names(&settings.ca, &trust.config().policy);
        begun(&rotation.begin(&names, now).map_err(failed)?)
    };
    drop(rotation);
    // Loading writes the files for clients again.
    Trust::load_even_expired(config)?;
    Ok(print(&text))
}

fn begun(next: &CertificateAuthority) -> String {
    let about = next.describe();
    format!(
        "the next CA was made; it signs nothing yet\n\
         \x20 subject      {}\n\
         \x20 sha256       {}\n\
         \x20 valid until  {}\n\
         \x20 signs for    {}\n\
         `ca.pem` and `bundle.pem` now hold both certificates.\n\
         1. Let all clients read these files again, and install `ca-next.pem` where `ca.pem` was copied to.\n\
         2. Then run `outpace ca rotate --finish`. To keep the present CA, run `outpace ca rotate --abort`.\n",
        about.subject,
        about.fingerprint,
        humantime::format_rfc3339_seconds(about.not_after),
        about.names,
    )
}

/// Makes a running outpace read the files of the CA, and returns after it signs with the CA that has
/// this fingerprint. If it does not, clients must go on trusting both certificates.
async fn confirm(config: Option<&Path>, trust: &Trust, fingerprint: &str) -> Result<(), Failure> {
    if serving(trust.data_dir()).is_none() {
        return Ok(());
    }
    let here = PathBuf::from(HERE);
    let outpace = Instance::admin(&AdminArgs::of_config(config.unwrap_or(&here)))?;
    let call = json!({ "force": false });
    // The CA is taken even if the configuration is refused.
    let _ = outpace.call(Method::POST, "/v1/reload", &call).await;
    let (exit, cause) = match outpace.call(Method::GET, "/v1/status", &Value::Null).await {
        // The process has ended without removing its file.
        Err(Failure(Exit::PORT, _)) => return Ok(()),
        Ok(status)
            if status
                .pointer("/ca/sha256")
                .is_some_and(|one| *one == fingerprint) =>
        {
            return Ok(());
        }
        Ok(_) => (Exit::CA, "its log says why".to_owned()),
        Err(Failure(exit, text)) => (exit, text),
    };
    let text = format!(
        "the running outpace did not confirm that the new CA signs: {cause}; the files for clients still hold both certificates, so run `outpace ca rotate --finish` again, or restart outpace first"
    );
    Err(Failure(exit, text))
}
