seq 12 | xargs -P 6 -I{} git ls-remote "$API/{}.git" | grep -c refs/heads/main | sed 's/$/ ok/'
git ls-remote "$OTHER/x.git" >/dev/null
git ls-remote "$OTHER/x.git" 2>&1 | grep -o 'error: 429' | sed 's/error: 429/told/'
