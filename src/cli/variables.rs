//! Environment variables that make a program use the proxy and trust its CA. Fourteen common
//! clients need six different mechanisms, and this list covers all of them.

use std::path::Path;

use crate::app::Trust;
use crate::config::process_environment;

/// Variables that make a program use the proxy. Both spellings are set, because each is read by
/// some programs only.
const PROXY: &str = "HTTP_PROXY,HTTPS_PROXY,http_proxy,https_proxy";
/// Variables that *replace* a program's root certificates. Their value is the bundle of all roots
/// and the CA.
const REPLACING: &str = "SSL_CERT_FILE,REQUESTS_CA_BUNDLE,CURL_CA_BUNDLE,PIP_CERT,GIT_SSL_CAINFO,\
    CARGO_HTTP_CAINFO,AWS_CA_BUNDLE,BUNDLE_SSL_CA_CERT,NPM_CONFIG_CAFILE,npm_config_cafile,\
    GRPC_DEFAULT_SSL_ROOTS_FILE_PATH";
/// Variables that *add* to a program's root certificates. Their value is the CA certificate alone.
const ADDING: [&str; 2] = ["NODE_EXTRA_CA_CERTS", "DENO_CERT"];
/// Hosts and networks to reach without the proxy, which would refuse most of these private
/// addresses.
pub(super) const NO_PROXY: &str =
    "localhost,127.0.0.1,::1,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,.svc,.cluster.local";

/// Names of variables with their values, in the order of the output.
pub(super) type Variables = Vec<(&'static str, String)>;

/// Returns all variables for the proxy at the URL `proxy`. The user's own exceptions, in both
/// spellings of `NO_PROXY`, are kept.
pub(super) fn variables(trust: &Trust, proxy: &str) -> Variables {
    let own = ["NO_PROXY", "no_proxy"].map(|name| process_environment(name).unwrap_or_default());
    let ourselves = url::Url::parse(proxy).ok();
    let ourselves = ourselves.as_ref().and_then(url::Url::host_str);
    let mut excepted: Vec<&str> = NO_PROXY.split(',').collect();
    let own = own.iter().flat_map(|own| own.split(',')).map(str::trim);
    for more in own.chain(ourselves) {
        if !more.is_empty() && !excepted.contains(&more) {
            excepted.push(more);
        }
    }
    let excepted = excepted.join(",");
    let mut variables = Variables::new();
    variables.extend(PROXY.split(',').map(|name| (name, proxy.to_owned())));
    variables.extend(["NO_PROXY", "no_proxy"].map(|name| (name, excepted.clone())));
    variables.extend(
        REPLACING
            .split(',')
            .map(|name| (name, absolute(&trust.bundle))),
    );
    variables.extend(ADDING.map(|name| (name, absolute(&trust.cert))));
    // wget reads only one variable, which names its configuration file.
    variables.push(("WGETRC", absolute(&trust.wgetrc)));
    // Node reads the proxy variables since version 24, if this variable is set.
    variables.push(("NODE_USE_ENV_PROXY", "1".to_owned()));
    variables
}

pub(super) fn absolute(path: &Path) -> String {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    path.display().to_string()
}
