import concurrent.futures, openai, os

def client(base, **more):
    return openai.OpenAI(api_key="k", base_url=f"{base}/v1", **more)

api = client(os.environ["API"], max_retries=0)
with concurrent.futures.ThreadPoolExecutor(6) as pool:
    lists = list(pool.map(lambda _: api.models.list(), range(12)))
print(len(lists), "ok")
other = client(os.environ["OTHER"], max_retries=2)
for _ in range(2):
    other.models.list()
print("retried")
