//! Relative paths of a file, which are relative to the directory of the file.

use std::path::{Path, PathBuf};

use super::schema::{ConfigFile, TlsSection};
use super::value::{FromText, Text};

/// Makes each relative path of the file relative to the directory of the file at `path`.
pub(super) fn anchor(file: &mut ConfigFile, path: &Path) {
    let Some(base) = path
        .parent()
        .filter(|base| !matches!(base.to_str(), Some("" | ".")))
    else {
        return;
    };
    let tls = [file.tls.as_mut(), file.admin.tls.as_mut()];
    let routes = file.routes.iter_mut().map(|route| route.tls.as_mut());
    let identities = tls.into_iter().chain(routes).flatten();
    let identities = identities
        .flat_map(|TlsSection { cert, key }| [cert, key])
        .flatten();
    let egress = &mut file.egress;
    let certificates = egress.client_certs.iter_mut();
    let certificates = certificates.flat_map(|pair| [&mut pair.cert, &mut pair.key]);
    let ca = [&mut file.ca.cert, &mut file.ca.key, &mut file.ca.export_dir];
    let spool = file.spool.as_mut();
    let (spool_dir, spool_key) = spool
        .map(|spool| (&mut spool.dir, &mut spool.key_file))
        .unzip();
    let texts = identities
        .chain(egress.roots.iter_mut())
        .chain(certificates)
        .chain(ca.into_iter().flatten())
        .chain(file.data_dir.as_mut())
        .chain(spool_dir.and_then(Option::as_mut));
    texts.for_each(|text| anchor_text(text, base));
    let clients = file.clients.iter_mut().map(|client| &mut client.token_file);
    let operators = file
        .admin
        .tokens
        .iter_mut()
        .map(|token| &mut token.token_file);
    let postgres = file
        .ledger
        .as_mut()
        .and_then(|ledger| ledger.postgres.as_mut());
    let files = clients
        .chain(operators)
        .chain([&mut file.admin.token_file])
        .chain(postgres.map(|postgres| &mut postgres.url_file))
        .chain(spool_key);
    files
        .flatten()
        .for_each(|path| *path = anchored(path, base));
}

fn anchor_text(FromText(text): &mut Text, base: &Path) {
    *text = anchored(Path::new(text), base).display().to_string();
}

/// Returns the path below `base`, or an absolute path as it is.
fn anchored(path: &Path, base: &Path) -> PathBuf {
    base.join(path.strip_prefix(".").unwrap_or(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_paths_are_those_of_the_file() {
        let text = "data_dir: ./state\ntls: { cert: a.pem, key: /abs/b.pem }\nadmin: { token_file: t }\n\
            ca: { export_dir: ../out }\nclients: [{ name: c, token_file: c.txt }]\n\
            egress: { roots: [r.pem] }\nledger: { postgres: { url_file: u } }\n\
            spool: { dir: ./s, key_file: k }\n";
        let read = |path: &str| {
            let mut file = super::super::schema::read(text).unwrap();
            anchor(&mut file, Path::new(path));
            let tls = file.tls.unwrap();
            let spool = file.spool.unwrap();
            let texts = [
                file.data_dir,
                tls.cert,
                tls.key,
                file.ca.export_dir,
                spool.dir,
            ];
            let mut all: Vec<String> = texts.into_iter().flatten().map(|text| text.0).collect();
            all.extend(file.egress.roots.into_iter().map(|text| text.0));
            let postgres = file.ledger.unwrap().postgres.unwrap();
            let client = file.clients.remove(0).token_file;
            let files = [
                file.admin.token_file,
                client,
                postgres.url_file,
                spool.key_file,
            ];
            all.extend(
                files
                    .into_iter()
                    .flatten()
                    .map(|path| path.display().to_string()),
            );
            all.join(" ")
        };
        let own = "./state a.pem /abs/b.pem ../out ./s r.pem t c.txt u k";
        assert_eq!(
            (read("outpace.yaml"), read("./outpace.yaml")),
            (own.to_owned(), own.to_owned())
        );
        assert_eq!(
            read("/etc/outpace/outpace.yaml"),
            "/etc/outpace/state /etc/outpace/a.pem /abs/b.pem /etc/outpace/../out /etc/outpace/s /etc/outpace/r.pem \
             /etc/outpace/t /etc/outpace/c.txt /etc/outpace/u /etc/outpace/k"
        );
        assert_eq!(read("sub/x.yaml").split(' ').next(), Some("sub/state"));
    }
}
