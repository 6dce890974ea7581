export npm_config_cache="$PWD/npm-cache" npm_config_update_notifier=false npm_config_fetch_retry_mintimeout=500
seq 12 | xargs -P 4 -I{} npm view "tiny{}" version --registry "$API/" | grep -c '^1.0.0' | sed 's/$/ ok/'
for n in 1 2; do npm view tiny version --registry "$OTHER/"; done | grep -c '^1.0.0' | sed 's/^2$/retried/'
