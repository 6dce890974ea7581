seq 12 | xargs -P 6 -I{} sh -c 'wget -q -O /dev/null "$API/{}" && echo 200' | grep -c 200 | sed 's/$/ ok/'
for n in 1 2; do wget -q -O /dev/null --retry-on-http-error=429 --waitretry=2 --tries=4 "$OTHER" && echo 200; done | grep -c 200 | sed 's/^2$/retried/'
