seq 12 | xargs -P 6 -I{} curl -sS -o /dev/null -w '%{http_code}\n' "$API/{}" | grep -c 200 | sed 's/$/ ok/'
for n in 1 2; do curl -sS --retry 3 -o answer -w '%{http_code}\n' "$OTHER" | tail -1; done | grep -c '^200$' | sed 's/^2$/retried/'
