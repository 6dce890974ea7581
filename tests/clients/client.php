<?php
// Requests with the curl extension. Several at once, as a worker pool would send them.
function batch(array $urls): array {
    $all = curl_multi_init();
    $handles = [];
    foreach ($urls as $url) {
        $handle = curl_init($url);
        curl_setopt_array($handle, [CURLOPT_RETURNTRANSFER => true, CURLOPT_HEADER => true]);
        curl_multi_add_handle($all, $handle);
        $handles[] = $handle;
    }
    do {
        curl_multi_exec($all, $running);
        curl_multi_select($all);
    } while ($running);
    return array_map(fn ($handle) => [
        curl_getinfo($handle, CURLINFO_RESPONSE_CODE),
        curl_multi_getcontent($handle),
        curl_error($handle),
    ], $handles);
}

$answers = batch(array_map(fn ($n) => getenv("API") . "/$n", range(1, 12)));
echo count(array_filter($answers, fn ($answer) => $answer[0] === 200)), " ok\n";
batch([getenv("OTHER") . "/"]);
[[$code, $text, $error]] = batch([getenv("OTHER") . "/"]);
if ($code !== 429) {
    throw new Exception("$code $error");
}
preg_match('/^retry-after: (\d+)/mi', $text, $found);
echo "told $found[1]\n";
