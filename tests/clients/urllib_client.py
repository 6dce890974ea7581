import concurrent.futures, os, urllib.error, urllib.request

def get(url):
    with urllib.request.urlopen(url) as response:
        return response.status

with concurrent.futures.ThreadPoolExecutor(6) as pool:
    codes = list(pool.map(lambda n: get(f"{os.environ['API']}/{n}"), range(12)))
print(codes.count(200), "ok")
get(os.environ["OTHER"])
try:
    get(os.environ["OTHER"])
except urllib.error.HTTPError as error:
    assert error.code == 429
    print("told", error.headers["Retry-After"])
