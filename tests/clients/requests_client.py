import concurrent.futures, os, requests
from requests.adapters import HTTPAdapter, Retry

session = requests.Session()
with concurrent.futures.ThreadPoolExecutor(6) as pool:
    codes = list(pool.map(lambda n: session.get(f"{os.environ['API']}/{n}").status_code, range(12)))
print(codes.count(200), "ok")
session.mount(os.environ["OTHER"], HTTPAdapter(max_retries=Retry(3, status_forcelist=[429])))
assert [session.get(os.environ["OTHER"]).status_code for _ in range(2)] == [200, 200]
print("retried")
