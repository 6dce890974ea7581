import boto3, botocore.config, botocore.exceptions, concurrent.futures, os

def client(base, attempts):
    retries = {"mode": "standard", "total_max_attempts": attempts}
    return boto3.client(
        "dynamodb", endpoint_url=base, region_name="us-east-1",
        aws_access_key_id="k", aws_secret_access_key="s",
        config=botocore.config.Config(retries=retries),
    )

api = client(os.environ["API"], 1)
with concurrent.futures.ThreadPoolExecutor(6) as pool:
    answers = list(pool.map(lambda _: api.list_tables(), range(12)))
print(len(answers), "ok")
other = client(os.environ["OTHER"], 1)
other.list_tables()
try:
    other.list_tables()
except botocore.exceptions.ClientError as error:
    told = error.response["ResponseMetadata"]
    assert told["HTTPStatusCode"] == 429
    print("told", told["HTTPHeaders"]["retry-after"])
