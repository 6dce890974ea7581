export AWS_ACCESS_KEY_ID=k AWS_SECRET_ACCESS_KEY=s AWS_DEFAULT_REGION=us-east-1 AWS_MAX_ATTEMPTS=1
aws() { "$PYTHON" -m awscli --endpoint-url "$1" dynamodb list-tables; }
for n in 1 2 3 4 5 6 7 8 9 10 11 12; do aws "$API" >/dev/null && echo ok; done | grep -c ok | sed 's/$/ ok/'
aws "$OTHER" >/dev/null
aws "$OTHER" 2>log && exit 1
grep -q '429\|Too Many\|outpace' log && echo told
