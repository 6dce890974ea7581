import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.stream.IntStream;

/** Requests with the client of the standard library. */
public class Client {
    static final HttpClient CLIENT = HttpClient.newHttpClient();

    static CompletableFuture<HttpResponse<Void>> get(String url) {
        HttpRequest request = HttpRequest.newBuilder(URI.create(url)).build();
        return CLIENT.sendAsync(request, HttpResponse.BodyHandlers.discarding());
    }

    public static void main(String[] arguments) {
        String api = System.getenv("API");
        String other = System.getenv("OTHER");
        List<CompletableFuture<HttpResponse<Void>>> sent =
                IntStream.rangeClosed(1, 12).mapToObj(n -> get(api + "/" + n)).toList();
        long ok = sent.stream().filter(one -> one.join().statusCode() == 200).count();
        System.out.println(ok + " ok");
        get(other + "/").join();
        HttpResponse<Void> refused = get(other + "/").join();
        if (refused.statusCode() != 429) {
            throw new IllegalStateException("" + refused.statusCode());
        }
        System.out.println("told " + refused.headers().firstValue("retry-after").orElse(""));
    }
}
