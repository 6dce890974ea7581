//! `outpace env --gateway URL --bundle PATH`: the variables of an app that uses an outpace elsewhere. It
//! needs no configuration, no key and no token, and prints no secret.

use url::Url;

use super::env::Shell;
use super::variables::{ADDING, NO_PROXY, PROXY, REPLACING};
use crate::app::encoded;

/// Variable with the token of the client, which the app's environment must have.
const TOKEN: &str = "OUTPACE_TOKEN";

/// Returns the lines for an app that finds the CA bundle at this path. A client is named in the proxy
/// URL, and its token stays a reference.
pub(super) fn lines(shell: Shell, gateway: &Url, bundle: &str, client: Option<&str>) -> String {
    let place = gateway.host_str().unwrap_or_default();
    let port = gateway
        .port()
        .map_or_else(String::new, |port| format!(":{port}"));
    let user = client.map_or_else(String::new, |name| {
        format!("{}:{}@", encoded(name), reference(shell))
    });
    let proxy = format!("{}://{user}{place}{port}", gateway.scheme());
    let bare = place.trim_matches(['[', ']']);
    let exceptions = format!("{NO_PROXY},{bare}");
    let mut text = client.map_or_else(String::new, |name| token_line(shell, name));
    for name in PROXY {
        text.push_str(&match client {
            Some(_) => expanded(shell, name, &proxy),
            None => shell.line(name, &proxy),
        });
    }
    for name in ["NO_PROXY", "no_proxy"] {
        text.push_str(&shell.line(name, &exceptions));
    }
    let files = REPLACING.iter().map(|names| names[0]).chain(ADDING);
    text.extend(files.map(|name| shell.line(name, bundle)));
    for name in ["NODE_USE_ENV_PROXY", "PERL_LWP_ENV_PROXY"] {
        text.push_str(&shell.line(name, "1"));
    }
    text
}

/// Returns the form in which values refer to the variable with the token.
fn reference(shell: Shell) -> String {
    match shell {
        Shell::Sh => format!("${{{TOKEN}}}"),
        Shell::Fish => format!("${TOKEN}"),
        Shell::Powershell => format!("$env:{TOKEN}"),
        Shell::K8s => format!("$({TOKEN})"),
        // An env file has no references.
        Shell::Docker => TOKEN.to_owned(),
    }
}

/// Returns a line whose value refers to the token.
fn expanded(shell: Shell, name: &str, value: &str) -> String {
    match shell {
        Shell::Sh => format!("export {name}=\"{value}\"\n"),
        Shell::Fish => format!("set -gx {name} \"{value}\"\n"),
        Shell::Powershell => format!("$env:{name} = \"{value}\"\n"),
        Shell::Docker | Shell::K8s => shell.line(name, value),
    }
}

/// Returns the line that gives the app its token, or says where it belongs.
fn token_line(shell: Shell, client: &str) -> String {
    match shell {
        Shell::K8s => format!(
            "- {{ name: {TOKEN}, valueFrom: {{ secretKeyRef: {{ name: outpace-client-{client}, key: token }} }} }}\n"
        ),
        Shell::Docker => format!("# Replace {TOKEN} by the token of {client}, percent-encoded.\n"),
        Shell::Sh | Shell::Fish | Shell::Powershell => {
            format!("# {TOKEN} is the token of {client}, percent-encoded.\n")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_hold_no_token_and_the_paths_of_the_app() {
        let gateway: Url = "http://outpace.egress.svc:8080".parse().unwrap();
        let of = |shell, client| lines(shell, &gateway, "/trust/bundle.pem", client);
        let k8s = of(Shell::K8s, Some("billing"));
        let first = k8s.lines().next().unwrap();
        assert!(first.contains("secretKeyRef: { name: outpace-client-billing, key: token }"));
        let proxy = "- { name: HTTPS_PROXY, value: \"http://billing:$(OUTPACE_TOKEN)@outpace.egress.svc:8080\" }";
        assert!(k8s.contains(proxy), "{k8s}");
        for shell in [
            Shell::Sh,
            Shell::Fish,
            Shell::Powershell,
            Shell::Docker,
            Shell::K8s,
        ] {
            let text = of(shell, None);
            assert!(
                !text.contains("TOKEN") && text.contains("/trust/bundle.pem"),
                "{text}"
            );
            assert!(
                text.contains("outpace.egress.svc") && !text.contains(".local/state"),
                "{text}"
            );
        }
        let sh = of(Shell::Sh, Some("a b"));
        assert!(
            sh.contains(
                "export HTTPS_PROXY=\"http://a%20b:${OUTPACE_TOKEN}@outpace.egress.svc:8080\""
            ),
            "{sh}"
        );
    }
}
