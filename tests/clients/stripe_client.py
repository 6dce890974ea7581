import concurrent.futures, os, stripe

# It brings its own roots and obeys no variable for others: a route needs none.
def client(base):
    return stripe.StripeClient("sk_test_1", base_addresses={"api": base}, max_network_retries=0)

api = client(os.environ["API"])
with concurrent.futures.ThreadPoolExecutor(6) as pool:
    answers = list(pool.map(lambda _: api.v1.balance.retrieve(), range(12)))
print(len(answers), "ok")
other = client(os.environ["OTHER"])
other.v1.balance.retrieve()
try:
    other.v1.balance.retrieve()
except stripe.RateLimitError as error:
    print("told", {name.lower(): value for name, value in error.headers.items()}["retry-after"])
