//! `outpace ca`: describes the CA, and replaces it in steps (`outpace ca rotate`).

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use http::Method;
use p12_keystore::{Certificate, KeyStore, KeyStoreEntry};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::{Value, json};

use super::client::{AdminArgs, HERE, Instance, config_or_here};
use super::{Exit, Failure, block_on, print};
use crate::app::{StartError, Trust, ca_names, serving};
use crate::clock::Clock;
use crate::config::Purpose;
use crate::intercept::{CaError, CaRotation, CertificateAuthority, bundle_text};
use crate::origin::Roots;

/// Part of the configuration that these commands need, also to make a running outpace reload.
const PURPOSE: Purpose<'_> = Purpose::Programs(None, true);

#[derive(Debug, Args)]
pub(super) struct CaArgs {
    /// Configuration file (default: ./outpace.yaml, or that of the user, or else the built-in defaults)
    #[arg(long, short, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    what: Option<CaCommand>,
}

/// Form of the exported certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ExportFormat {
    /// Certificate of the CA in PEM
    Pem,
    /// The system's roots and the certificate of the CA in PEM
    Bundle,
    /// The system's roots and the CA as a PKCS #12 truststore, which Java reads
    P12,
}

#[derive(Debug, Subcommand)]
enum CaCommand {
    /// Write the certificates that clients trust into a file, or to standard output. No key is written
    #[command(
        after_help = "Example for Java:\n  outpace ca export --format p12 --out outpace.p12\n  java -Djavax.net.ssl.trustStore=outpace.p12 -Djavax.net.ssl.trustStorePassword=changeit \\\n       -Dhttps.proxyHost=127.0.0.1 -Dhttps.proxyPort=8080 App"
    )]
    Export {
        /// Form of the file
        #[arg(long, value_enum, default_value_t = ExportFormat::Pem)]
        format: ExportFormat,
        /// File to write (default: standard output)
        #[arg(long, value_name = "FILE", required_if_eq("format", "p12"))]
        out: Option<PathBuf>,
        /// Password of the PKCS #12 file. The certificates are public, so it protects nothing
        #[arg(long, value_name = "TEXT", default_value = "changeit")]
        password: String,
    },
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
    let trust = Trust::load_even_expired(config, PURPOSE)?;
    match args.what {
        None => Ok(print(&describe(&trust))),
        Some(CaCommand::Export {
            format,
            ref out,
            ref password,
        }) => export(&trust, format, out.as_deref(), password),
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

fn export(
    trust: &Trust,
    format: ExportFormat,
    out: Option<&Path>,
    password: &str,
) -> Result<Exit, Failure> {
    let roots = Roots::system();
    let bytes = match format {
        ExportFormat::Pem => trust.ca.pem().into_bytes(),
        ExportFormat::Bundle => bundle_text(&trust.ca, roots.certificates()).into_bytes(),
        ExportFormat::P12 => truststore(&trust.ca.pem(), roots.certificates(), password)
            .map_err(|text| Failure(Exit::INTERNAL, text))?,
    };
    let Some(path) = out else {
        return Ok(print(&String::from_utf8_lossy(&bytes)));
    };
    std::fs::write(path, bytes).map_err(|error| {
        let text = format!(
            "{} cannot be written: {error}; set another --out",
            path.display()
        );
        Failure(Exit::DATA_DIR, text)
    })?;
    Ok(print(&format!("wrote {}\n", path.display())))
}

/// Returns a PKCS #12 truststore with the roots and outpace's CA. Roots that the library cannot read
/// are left out.
fn truststore(
    ours: &str,
    roots: &[CertificateDer<'static>],
    password: &str,
) -> Result<Vec<u8>, String> {
    let own = CertificateDer::pem_slice_iter(ours.as_bytes()).flatten();
    let own: Vec<_> = own.map(|cert| ("outpace", cert)).collect();
    let system = roots.iter().map(|cert| ("root", cert.clone()));
    let mut store = KeyStore::new();
    for (number, (kind, cert)) in own.into_iter().chain(system).enumerate() {
        match Certificate::from_der(&cert) {
            Ok(cert) => store.add_entry(
                &format!("{kind}-{number}"),
                KeyStoreEntry::Certificate(cert),
            ),
            Err(error) if kind == "outpace" => {
                return Err(format!("the CA cannot be exported: {error}"));
            }
            Err(_unreadable) => {}
        }
    }
    let written = store.writer(password).write();
    written.map_err(|error| format!("the truststore cannot be made: {error}"))
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
    Trust::load_even_expired(config, PURPOSE)?;
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
